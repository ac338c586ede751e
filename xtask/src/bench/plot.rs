//! A result as a picture: for each figure a bar for ours and one for the other side, with the spread
//! of the runs, and a line where the target lies.

use std::fmt::Write as _;

use super::figure::{Figure, Runs, Target, short};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
/// What is left of a row's width for its bars, beside the numbers.
const BARS: f64 = WIDTH - 2.0 * MARGIN - 330.0;
const HEAD: f64 = 58.0;
const BAR: f64 = 14.0;
/// A title, two bars and the gap to the next row.
const ROW: f64 = 20.0 + 2.0 * BAR + 18.0;

/// The picture of a benchmark, as SVG. Each row has a scale of its own, from 0: rows differ in unit.
pub(super) fn draw(name: &str, machine: &str, figures: &[Figure]) -> String {
    let height = HEAD + ROW * figures.len() as f64 + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(
        &mut svg,
        (MARGIN, 24.0),
        "font-size=\"17\" font-weight=\"bold\"",
        name,
    );
    text(&mut svg, (MARGIN, 42.0), "fill=\"#555555\"", machine);
    for (row, figure) in figures.iter().enumerate() {
        draw_row(&mut svg, HEAD + ROW * row as f64, figure);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_row(svg: &mut String, top: f64, figure: &Figure) {
    let goal = goal(figure);
    let most = [
        Some(figure.ours.max),
        figure.against.as_ref().map(|against| against.runs.max),
        goal,
    ];
    let most = most.into_iter().flatten().fold(0.0, f64::max);
    let scale = |value: f64| {
        if most > 0.0 {
            value.max(0.0) / most * BARS
        } else {
            0.0
        }
    };
    let title = match (figure.ratio(), figure.target, figure.is_met()) {
        (Some(ratio), Some(target), Some(met)) => {
            let verdict = if met { "met" } else { "MISSED" };
            format!(
                "{}: ratio {}, target {target}: {verdict}",
                figure.name,
                short(ratio)
            )
        }
        (Some(ratio), ..) => format!("{}: ratio {}", figure.name, short(ratio)),
        _ => figure.name.clone(),
    };
    text(svg, (MARGIN, top + 13.0), "font-weight=\"bold\"", &title);
    let ours_fill = match figure.is_met() {
        Some(false) => "#c0392b",
        _ => "#2874a6",
    };
    bar(
        svg,
        top + 20.0,
        &figure.ours,
        (ours_fill, &format!("ours, {}", figure.unit)),
        &scale,
    );
    if let Some(against) = &figure.against {
        let label = format!("{}, {}", against.what, figure.unit);
        bar(
            svg,
            top + 22.0 + BAR,
            &against.runs,
            ("#a6acaf", &label),
            &scale,
        );
    }
    if let Some(goal) = goal {
        let (x, end) = (MARGIN + scale(goal), top + 24.0 + 2.0 * BAR);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\" stroke=\"#000000\" stroke-dasharray=\"3 2\"/>",
            top + 18.0
        );
    }
}

/// Where ours has to be, in its own unit.
fn goal(figure: &Figure) -> Option<f64> {
    let (Target::Under(limit) | Target::AtLeast(limit)) = figure.target?;
    Some(figure.against.as_ref()?.runs.median * limit)
}

fn bar(
    svg: &mut String,
    top: f64,
    runs: &Runs,
    (fill, label): (&str, &str),
    scale: &dyn Fn(f64) -> f64,
) {
    let middle = top + BAR / 2.0;
    let [length, from, to] = [runs.median, runs.min, runs.max].map(scale);
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{MARGIN}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{fill}\"/>"
    );
    if runs.all.len() > 1 {
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"#17202a\" stroke-width=\"2\"/>",
            MARGIN + from,
            MARGIN + to
        );
    }
    let at = (
        MARGIN + scale(runs.max.max(runs.median)) + 6.0,
        top + BAR - 3.0,
    );
    text(
        svg,
        at,
        "fill=\"#333333\"",
        &format!("{} ({label})", short(runs.median)),
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), style: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share_of_the_row() {
        let figure = Figure::of("claims", "1/s", vec![50.0, 60.0, 40.0]).against(
            "bare",
            vec![100.0],
            Target::AtLeast(0.7),
        );
        let svg = draw("claim", "a machine & more", &[figure]);
        let half = format!("width=\"{:.1}\"", BARS / 2.0);
        assert!(svg.contains(&half), "{svg}");
        assert!(svg.contains(&format!("width=\"{BARS:.1}\"")), "{svg}");
        let goal = format!("x1=\"{:.1}\"", MARGIN + BARS * 0.7);
        assert!(svg.contains(&goal), "{svg}");
        assert!(svg.contains("a machine &amp; more"));
        assert!(svg.contains("MISSED"));
        assert!(svg.contains("&gt;= 0.7"), "{svg}");
    }

    #[test]
    fn a_row_of_nothing_is_drawn() {
        let svg = draw("idle", "m", &[Figure::of("bytes", "B", vec![0.0])]);
        assert!(svg.contains("width=\"0.0\""), "{svg}");
        assert!(!svg.contains("NaN"));
    }
}
