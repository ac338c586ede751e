//! Memory, and files, over time.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;
use walkdir::WalkDir;

use super::LEFT_ALONE;
use super::report::Report;
use crate::Rig;

/// Between two samples of memory, and of files.
const EVERY: Duration = Duration::from_secs(2);
const FILES_EVERY: Duration = Duration::from_secs(20);
/// A program is in its stride at this age, seconds: before, it reads what is there.
const STRIDE_SECONDS: f64 = 10.0;
/// What an incarnation is said to take: the median of its samples from the stride to this age, so that
/// long and short lives compare.
const YOUNG_SECONDS: f64 = 60.0;
/// The memory of a program may be so much more in the last quarter than in the first: a share of it for
/// what varies, and what an allocator keeps.
const GROWTH_SHARE: f64 = 0.25;
const GROWTH_KIB: f64 = 4.0 * 1024.0;
/// Growth is only judged over a time in which one would show, seconds.
const JUDGED_SECONDS: f64 = 240.0;

/// What may be left of a batch that is over: its archive, the key of its submission.
const FILES_PER_BATCH: usize = 6;
/// What there is besides, in quarantine for example.
const FILES_BESIDES: usize = 500;

/// One program's resident memory over the soak, KiB.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    /// `brain`, or an agent's name.
    pub name: String,
    /// How often it was started.
    pub incarnations: usize,
    /// Median over the incarnations that began in the first quarter of the time; of one that
    /// lives through all of it, over the samples of that quarter.
    pub first: Option<f64>,
    /// The same for the last quarter.
    pub last: Option<f64>,
    /// The most that was seen.
    pub most: u64,
    /// How it grows within an incarnation once it is in its stride, KiB a minute: least squares over
    /// all incarnations, each with its own level.
    pub slope: Option<f64>,
}

impl Memory {
    /// Whether it is more at the end than the bound allows.
    pub fn has_grown(&self) -> bool {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return false;
        };
        last > first * (1.0 + GROWTH_SHARE) + GROWTH_KIB
    }
}

/// Files and directories of the rig at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Files {
    /// Seconds since the beginning.
    pub at: f64,
    /// How many.
    pub count: usize,
    /// What files hold, bytes.
    pub bytes: u64,
}

/// Whether the rig has more files in the end than its batches account for, all of which are archived.
pub(super) fn has_more_files(files: &[Files], batches: usize) -> bool {
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return true;
    };
    last.count > first.count + FILES_PER_BATCH * batches + FILES_BESIDES
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: f64,
    /// Of the program: which of its lives, and how long into it.
    life: usize,
    age: f64,
    kib: u64,
}

#[derive(Default)]
struct Program {
    name: String,
    pid: u32,
    lives: usize,
    born: f64,
    samples: Vec<Sample>,
}

pub(super) struct Sampler {
    started: Instant,
    due: Instant,
    files_due: Instant,
    programs: Vec<Program>,
    files: Vec<Files>,
    /// Batches open at each sample of files.
    open_most: usize,
}

impl Sampler {
    pub(super) fn new(rig: &Rig) -> Sampler {
        let mut sampler = Sampler {
            started: Instant::now(),
            due: Instant::now(),
            files_due: Instant::now(),
            programs: Vec::new(),
            files: Vec::new(),
            open_most: 0,
        };
        sampler.count_files(rig);
        sampler
    }

    pub(super) fn step(&mut self, rig: &Rig, names: &[String], open: usize) {
        self.open_most = self.open_most.max(open);
        let now = Instant::now();
        if self.files_due <= now {
            self.files_due = now + FILES_EVERY;
            self.count_files(rig);
        }
        if self.due > now {
            return;
        }
        self.due = now + EVERY;
        let at = self.started.elapsed().as_secs_f64();
        for name in names.iter().filter(|name| rig.is_started(name)) {
            let pid = rig.pid(name);
            let Some(kib) = resident(pid) else { continue };
            if !self.programs.iter().any(|one| one.name == *name) {
                self.programs.push(Program {
                    name: name.clone(),
                    ..Program::default()
                });
            }
            let program = self.programs.iter_mut().find(|one| one.name == *name);
            let program = program.expect("it was pushed");
            if program.pid != pid {
                program.pid = pid;
                program.lives += 1;
                program.born = at;
            }
            program.samples.push(Sample {
                at,
                life: program.lives,
                age: at - program.born,
                kib,
            });
        }
    }

    fn count_files(&mut self, rig: &Rig) {
        let mut files = Files {
            at: self.started.elapsed().as_secs_f64(),
            ..Files::default()
        };
        for entry in WalkDir::new(rig.root()).into_iter().flatten() {
            files.count += 1;
            files.bytes += entry
                .metadata()
                .map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
        }
        self.files.push(files);
    }

    pub(super) fn tell(&mut self, report: &mut Report, names: &[String]) {
        let time = self.started.elapsed().as_secs_f64();
        for name in names {
            let program = self.programs.iter().find(|one| one.name == *name);
            let memory = program.map_or_else(Memory::default, |one| one.memory(time));
            if time >= JUDGED_SECONDS && memory.has_grown() {
                report
                    .wrong
                    .push(format!("the memory of {name} grows: {memory:?}"));
            }
            report.memory.push(memory);
        }
        report.files = self.files.clone();
        report.open_most = self.open_most;
    }
}

impl Program {
    fn memory(&self, time: f64) -> Memory {
        Memory {
            name: self.name.clone(),
            incarnations: self.lives,
            first: self.level(0.0, time / 4.0),
            last: self.level(time * 3.0 / 4.0, time),
            most: self.samples.iter().map(|one| one.kib).max().unwrap_or(0),
            slope: self.slope(),
        }
    }

    fn level(&self, from: f64, to: f64) -> Option<f64> {
        let during = |one: &&Sample| (from..to).contains(&one.at) && one.age >= STRIDE_SECONDS;
        if self.name == LEFT_ALONE {
            return median(
                self.samples
                    .iter()
                    .filter(during)
                    .map(|one| one.kib as f64)
                    .collect(),
            );
        }
        let young = |one: &&Sample| during(one) && one.age < YOUNG_SECONDS;
        let of_life = |life: usize| {
            let samples = self
                .samples
                .iter()
                .filter(young)
                .filter(|one| one.life == life);
            median(samples.map(|one| one.kib as f64).collect())
        };
        median((1..=self.lives).filter_map(of_life).collect())
    }

    fn slope(&self) -> Option<f64> {
        let (mut above, mut below) = (0.0, 0.0);
        for life in 1..=self.lives {
            let grown = |one: &&Sample| one.life == life && one.age >= STRIDE_SECONDS;
            let samples: Vec<&Sample> = self.samples.iter().filter(grown).collect();
            let count = samples.len() as f64;
            let age = samples.iter().map(|one| one.age).sum::<f64>() / count;
            let kib = samples.iter().map(|one| one.kib as f64).sum::<f64>() / count;
            for one in samples {
                above += (one.age - age) * (one.kib as f64 - kib);
                below += (one.age - age) * (one.age - age);
            }
        }
        (below > 0.0).then(|| 60.0 * above / below)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(samples: impl Iterator<Item = (f64, usize, f64, u64)>) -> Program {
        let samples = samples.map(|(at, life, age, kib)| Sample { at, life, age, kib });
        Program {
            name: "brain".to_owned(),
            lives: 2,
            samples: samples.collect(),
            ..Program::default()
        }
    }

    #[test]
    fn a_slope_is_within_lives_and_not_between_them() {
        let flat = |n: usize| {
            (
                n as f64,
                1 + n / 50,
                (n % 50) as f64,
                1000 + 500 * (n as u64 / 50),
            )
        };
        let slope = program((0..100).map(flat)).slope().unwrap();
        assert!(slope.abs() < 1e-6, "{slope}");
        // 2 KiB a second.
        let leak = |n: usize| {
            (
                n as f64,
                1 + n / 50,
                (n % 50) as f64,
                1000 + 2 * (n as u64 % 50),
            )
        };
        let slope = program((0..100).map(leak)).slope().unwrap();
        assert!((slope - 120.0).abs() < 1e-6, "{slope}");
    }

    #[test]
    fn what_grows_from_life_to_life_is_seen() {
        let memory = |growth: u64| {
            let life = |n: usize| {
                (
                    n as f64,
                    1 + n / 200,
                    (n % 200) as f64,
                    20_000 + growth * (n as u64 / 200),
                )
            };
            program((0..400).map(life)).memory(400.0)
        };
        let grown = memory(12_000);
        assert_eq!(
            (grown.first, grown.last),
            (Some(20_000.0), None),
            "the second began too early"
        );
        let lives = |n: usize| {
            (
                n as f64,
                1 + n / 50,
                (n % 50) as f64,
                20_000 + 2_000 * (n as u64 / 50),
            )
        };
        let mut grows = program((0..400).map(lives));
        grows.lives = 8;
        let memory = grows.memory(400.0);
        assert!(memory.has_grown(), "{memory:?}");
        let lives = |n: usize| {
            (
                n as f64,
                1 + n / 50,
                (n % 50) as f64,
                20_000 + 100 * (n as u64 / 50),
            )
        };
        let mut flat = program((0..400).map(lives));
        flat.lives = 8;
        let memory = flat.memory(400.0);
        assert!(!memory.has_grown(), "{memory:?}");
    }

    #[test]
    fn files_may_grow_with_batches_and_not_with_their_tasks() {
        let files = |count| Files {
            count,
            ..Files::default()
        };
        assert!(!has_more_files(&[files(80), files(5_000)], 1_000));
        assert!(has_more_files(&[files(80), files(20_000)], 1_000));
        assert!(has_more_files(&[], 1_000));
    }
}
