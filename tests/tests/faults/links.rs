//! Row 34: a directory of a rig is replaced by a symbolic link, before the programs start and while
//! they run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rigor_queue::heartbeat::Health;
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;
use rigor_tests::journal::{self, command, noted};
use rigor_tests::{Rig, lines};

/// What is behind the link: it must stay as it is.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn plan(rig: &Rig, name: &str) -> PathBuf {
    let task = format!(
        "### one\n\n- **task_class**: cpu\n{}",
        command(&noted("true"))
    );
    rig.plan(name, &task)
}

#[test]
fn a_rig_with_a_lane_that_is_a_link_is_refused_at_start() {
    let mut rig = Rig::new(1);
    let lane = rig.root().join("tasks/complete");
    let outside = rig.plans().with_file_name("outside");
    fs::rename(&lane, &outside).unwrap();
    symlink(&outside, &lane).unwrap();
    let mut commands = vec![rig.component(BRAIN), rig.component("gpu-1")];
    commands.push(rig.rigor_command(&["up"]));
    commands.push(rig.rigor_command(&["submit", plan(&rig, "p").to_str().unwrap()]));
    for command in commands {
        let said = rig.output(command);
        assert_eq!(said.code, 1, "{said:?}");
        let named = format!("{} is a symbolic link to", lane.display());
        assert!(said.stderr.contains(&named), "{}", said.stderr);
        assert!(
            said.stderr.contains("put the directory itself"),
            "{}",
            said.stderr
        );
    }
    let told = rig.rigor(&["fsck", "--dry-run"]);
    assert_eq!(
        told.code, 1,
        "fsck says it among what else is wrong: {told:?}"
    );
    assert!(told.stdout.contains("tasks/complete"), "{}", told.stdout);
    assert_eq!(names(&outside), Vec::<String>::new());
    fs::remove_file(&lane).unwrap();
    fs::rename(&outside, &lane).unwrap();
    rig.start_all();
}

/// For each of three lanes, in a rig that runs: nothing moves, everybody says why, and when it is
/// mended all goes on by itself.
#[test]
fn a_lane_that_becomes_a_link_stops_the_rig_until_it_is_one_again() {
    let mut rig = Rig::new(1);
    rig.start_all();
    let lanes = [
        rig.rig.dir(Place::Queue(Class::Cpu)),
        rig.rig.dir(Place::Processing("gpu-1")),
        rig.root().join("tasks/complete"),
    ];
    for (n, lane) in lanes.iter().enumerate() {
        let outside = rig.plans().with_file_name(format!("outside-{n}"));
        fs::rename(lane, &outside).unwrap();
        symlink(&outside, lane).unwrap();
        let said = format!("{} is a symbolic link to", lane.display());
        let says = |rig: &Rig, who: &str| {
            rig.heartbeat(who).is_some_and(|beat| {
                let why = beat.health_reason.unwrap_or_default();
                beat.health == Health::Quarantined && why.contains(&said)
            })
        };
        rig.wait("the agent says so", |rig| says(rig, "gpu-1"));
        // Of an agent's own directory its agent alone knows.
        let shared = !lane.ends_with("gpu-1");
        if shared {
            rig.wait("the brain says so", |rig| says(rig, BRAIN));
        }
        fs::write(outside.join("note"), "mine").unwrap();
        let whole = names(&outside);
        for pid in [rig.pid("gpu-1"), rig.pid(BRAIN)] {
            let busy = busy(pid, || {
                let sequence = rig.heartbeat("gpu-1").unwrap().sequence;
                rig.wait("some more heartbeats", |rig| {
                    rig.heartbeat("gpu-1").unwrap().sequence >= sequence + 10
                });
            });
            assert!(busy < 0.5, "{busy:.2} of a core: a hot loop");
        }
        assert_eq!(names(&outside), whole);
        fs::remove_file(outside.join("note")).unwrap();
        fs::remove_file(lane).unwrap();
        fs::create_dir(lane).unwrap();
        for entry in fs::read_dir(&outside).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), lane.join(entry.file_name())).unwrap();
        }
        let plan = plan(&rig, &format!("after-{n}"));
        rig.wait("the rig is sound", |rig| {
            rig.heartbeat(BRAIN).unwrap().health == Health::Healthy
                && rig.heartbeat("gpu-1").unwrap().health == Health::Healthy
        });
        let batch = rig.submit(&plan);
        assert_eq!(rig.wait_short_batch(&batch), 0, "{}", lane.display());
        assert_eq!(journal::read(&plan).len(), 1);
    }
    // Once for each lane.
    let log = rig.log("gpu-1");
    let said = lines::all(&log, "ERROR Claiming nothing: .*is a symbolic link");
    assert_eq!(said.len(), lanes.len(), "{said:#?}");
    let mended = lines::all(&log, "INFO  Claiming again");
    assert_eq!(mended.len(), lanes.len(), "{log}");
    let log = rig.log(BRAIN);
    let said = lines::all(&log, "ERROR The brain cannot use the rig's directories");
    assert!((1..=2).contains(&said.len()), "{said:#?}");
}

/// `sysconf(_SC_CLK_TCK)` is 100 on Linux.
const TICKS_PER_S: f64 = 100.0;

/// CPU time of a process, of which the kernel counts ticks (proc_pid_stat(5), fields 14 and 15).
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The part of a core that a process takes for a while; a loop that tries again at once takes a
/// whole one.
pub(crate) fn busy(pid: u32, while_: impl FnOnce()) -> f64 {
    let (began, before) = (std::time::Instant::now(), cpu_ticks(pid));
    while_();
    (cpu_ticks(pid) - before) as f64 / TICKS_PER_S / began.elapsed().as_secs_f64()
}
