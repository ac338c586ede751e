//! Attempts: workers started, watched and settled.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::process::ExitStatus;
use std::time::Instant;

use rigor_exec::recovery::lost_outcome;
use rigor_exec::{ExecError, Launch, Running, settle, settle_unstarted, spawn};
use rigor_queue::claim::Held;
use rigor_queue::lane::Lane;
use rigor_queue::name::FileName;
use rigor_queue::record::{FailureKind, Outcome};
use rigor_queue::records;
use rigor_queue::task::Class;

use crate::agent::Agent;
use crate::committer::{Finished, Job};
use crate::device::SAMPLE_FIRST;
use crate::memory::memory_words;

/// A worker and what it holds.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) running: Running,
    /// Its part of the GPU's memory.
    pub(crate) lease: Option<String>,
    /// Its file's need was raised: it ran out of GPU memory before.
    pub(crate) raised: bool,
    /// The GPU was read while it ran.
    pub(crate) sampled: bool,
    /// Each of these readings told the memory of every process on the GPU.
    pub(crate) attributed: bool,
    /// Another lease was there for a while, so what the whole GPU used does not tell its part.
    pub(crate) shared: bool,
    /// Its GPU or its model's runtime is gone: if it fails, that is not its fault.
    lost: Option<String>,
}

/// Everything that has begun here and is not with the committer yet.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    pub(crate) running: Vec<Attempt>,
    /// The worker has exited, but its record cannot be written or its tree not be killed yet.
    unsettled: Vec<(Attempt, ExitStatus)>,
    /// No worker could be started, and the record of that cannot be written yet.
    unstarted: Vec<(FileName, Outcome)>,
    /// Recorded, but the record is not durable or the task not moved yet.
    unfinished: Vec<Job>,
}

impl Attempt {
    pub(crate) fn class(&self) -> Class {
        self.running.spec.class
    }

    pub(crate) fn name(&self) -> &FileName {
        &self.running.name
    }

    pub(crate) fn started(&self) -> Instant {
        self.running.started
    }

    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    pub(crate) fn lease(&self) -> Option<&str> {
        self.lease.as_deref()
    }

    /// After its tree was killed: leaves no zombie.
    pub(crate) fn reap(&mut self) {
        let _ = self.running.try_wait();
    }

    /// `a1b2c3d4.a1`: which worker.
    fn worker_id(&self) -> String {
        format!(
            "{}.a{}",
            self.running.name.id.short(),
            self.running.name.attempt
        )
    }
}

impl Attempts {
    /// Attempts that hold slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attempt> {
        self.running
            .iter()
            .chain(self.unsettled.iter().map(|(attempt, _)| attempt))
    }

    /// Those whose worker was not seen to exit.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().map(|attempt| &attempt.running)
    }

    /// Takes out those whose task file is not among `ours`.
    pub(crate) fn take_others(&mut self, ours: &HashSet<FileName>) -> Vec<Attempt> {
        let other = |attempt: &Attempt| !ours.contains(attempt.name());
        let running = self.running.extract_if(.., |attempt| other(attempt));
        let mut others: Vec<Attempt> = running.collect();
        let unsettled = self.unsettled.extract_if(.., |(attempt, _)| other(attempt));
        others.extend(unsettled.map(|(attempt, _)| attempt));
        others
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len() + self.unsettled.len()
    }

    pub(crate) fn of_class(&self, class: Class) -> u32 {
        self.iter()
            .filter(|attempt| attempt.class() == class)
            .count() as u32
    }

    pub(crate) fn cpus(&self) -> u32 {
        let counted = |attempt: &&Attempt| matches!(attempt.class(), Class::Cpu | Class::Script);
        self.iter()
            .filter(counted)
            .map(|attempt| attempt.running.spec.cpus)
            .sum()
    }

    /// Whether anything waits for another try.
    pub(crate) fn has_postponed(&self) -> bool {
        !(self.unsettled.is_empty() && self.unstarted.is_empty() && self.unfinished.is_empty())
    }
}

impl Agent {
    /// Forks a worker for a claimed task.
    pub(crate) fn start_attempt(&mut self, held: Held, lease: Option<String>) {
        let (name, class) = (held.name, held.spec.class);
        let raised = held.spec.shape() != name.shape;
        let env = match self.task_environment(&held) {
            Ok(env) => env,
            Err(reason) => {
                // The lease goes first: the move takes the lock again.
                drop(held);
                self.give_back_memory(lease.as_deref());
                return self.not_started(name, setup_failure(reason));
            }
        };
        let launched = spawn(Launch {
            rig: &self.rig,
            agent: &self.name,
            held,
            env,
            containment: &self.containment,
            worker: &self.worker,
            output_cap_bytes: self.config.limits.output_cap_bytes,
            grace: self.config.timing.grace,
            limits: rigor_exec::Limits {
                processes: Some(self.config.limits.processes.into()),
                memory_bytes: self.config.limits.memory_bytes,
                file_size_bytes: self.config.limits.file_size_bytes,
            },
        });
        match launched {
            Ok(running) => {
                rigor_queue::crash_point!("handed_over");
                self.worker_started();
                let attempt = Attempt {
                    running,
                    lease,
                    raised,
                    sampled: false,
                    attributed: true,
                    shared: false,
                    lost: None,
                };
                tracing::info!(
                    task = %name.id,
                    attempt = name.attempt,
                    "Spawned worker {} (PID {}) for {class} task {}",
                    attempt.worker_id(),
                    attempt.running.pid(),
                    name.id.short()
                );
                if let (Some(device), Some(_)) = (&mut self.device, &attempt.lease) {
                    device.request_at(Instant::now() + SAMPLE_FIRST);
                }
                self.attempts.running.push(attempt);
                self.note_sharing();
            }
            Err(ExecError::NotStarted { worker, source, .. }) if !is_of_the_task(&source) => {
                self.give_back_memory(lease.as_deref());
                // Any other task would fare alike: this one goes back, and none follows for a while.
                let reason = format!("start the worker {}: {source}", worker.display());
                self.cannot_start(&reason);
                self.not_started(name, Outcome::Lost { reason });
            }
            Err(error) => {
                self.give_back_memory(lease.as_deref());
                self.not_started(name, setup_failure(error.to_string()));
            }
        }
    }

    /// What the agent adds to a task's environment; the error says in words what is missing.
    fn task_environment(&self, held: &Held) -> Result<Vec<(String, String)>, String> {
        let mut env: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str| env.push((name.to_owned(), value.to_owned()));
        for name in &held.spec.secrets {
            let secret = self
                .config
                .secret(name)
                .map_err(|error| error.to_string())?;
            set(
                name,
                secret
                    .resolve()
                    .map_err(|error| error.to_string())?
                    .reveal(),
            );
        }
        // Only a script has memory of the GPU promised to it: nobody else is shown the GPU.
        let visible = match (held.spec.class, &self.device) {
            (Class::Script, Some(device)) => device.info.uuid.as_str(),
            _ => "",
        };
        set("CUDA_VISIBLE_DEVICES", visible);
        if held.spec.class == Class::Llm {
            let served = self.llm.served().ok_or("no model is loaded any more")?;
            let base = served.base_url.trim_end_matches('/');
            set("RIGOR_LLM_URL", base);
            set("RIGOR_LLM_MODEL", &served.served_as);
            set("RIGOR_LLM_KIND", served.kind);
            set("OPENAI_BASE_URL", &format!("{base}/v1"));
            // Clients refuse to start without one; the server does not look at it.
            set("OPENAI_API_KEY", "rigor");
            set("WORKER_OLLAMA_URL", base);
        }
        Ok(env)
    }

    fn not_started(&mut self, name: FileName, outcome: Outcome) {
        let reason = outcome.reason().unwrap_or_default();
        tracing::warn!(task = %name.id, "Task {} could not be started: {reason}", name.id.short());
        let settled = settle_unstarted(
            &self.rig,
            &self.name,
            &name,
            outcome.clone(),
            self.durability,
        );
        match settled {
            Ok(record) if matches!(record.outcome, Outcome::Lost { .. }) => {
                tracing::info!(task = %name.id, "Task {} is back in the queue", name.id.short());
            }
            Ok(_) => self.counts.add_failed(),
            Err(error @ ExecError::NotOurs { .. }) => {
                tracing::warn!(task = %name.id, "Fenced: {error}");
            }
            Err(error) => {
                self.attempts.unstarted.push((name, outcome));
                self.in_trouble(&error.to_string());
            }
        }
    }

    /// Settles every worker that has exited.
    pub(crate) fn reap(&mut self) {
        let mut at = 0;
        while at < self.attempts.running.len() {
            match self.attempts.running[at].running.try_wait() {
                Ok(Some(status)) => {
                    let attempt = self.attempts.running.remove(at);
                    self.settle_attempt(attempt, status);
                }
                Ok(None) => at += 1,
                Err(error) => {
                    let worker = self.attempts.running[at].worker_id();
                    tracing::error!("Cannot wait for worker {worker}: {error}");
                    at += 1;
                }
            }
        }
    }

    fn settle_attempt(&mut self, attempt: Attempt, status: ExitStatus) {
        rigor_queue::crash_point!("worker_ended");
        let peak_mb = self.peak_of(&attempt);
        let settled = settle(
            &self.rig,
            &self.name,
            &self.containment,
            &attempt.running,
            status,
            peak_mb,
            self.config.timing.grace,
        );
        let mut record = match settled {
            Ok(record) => record,
            Err(error) => {
                if matches!(error, ExecError::Unkillable { .. }) {
                    self.quarantine_gpu(&error.to_string());
                }
                self.attempts.unsettled.push((attempt, status));
                return self.in_trouble(&error.to_string());
            }
        };
        if let (Some(reason), Outcome::Failed { .. }) = (&attempt.lost, &record.outcome) {
            let uncharged = self.config.limits.uncharged_attempts;
            let running = &attempt.running;
            record.outcome = lost_outcome(&running.name, &running.spec, uncharged, reason);
            if let Err(error) = records::replace(&self.rig, &record) {
                self.attempts.unsettled.push((attempt, status));
                return self.in_trouble(&error.to_string());
            }
        }
        if let Some(memory) = self.memory_had(&attempt, &record.outcome) {
            let seen = peak_mb.map_or(String::new(), |mb| format!(", was seen to take {mb}MB"));
            if let Outcome::Failed { reason, .. } = &mut record.outcome {
                *reason = format!("{reason}; {}{seen}", memory_words(memory));
            }
            record.gpu_memory = Some(memory);
            if let Err(error) = records::replace(&self.rig, &record) {
                self.attempts.unsettled.push((attempt, status));
                return self.in_trouble(&error.to_string());
            }
            if let Some(mb) = memory.leased_mb {
                let key = attempt.running.spec.measured_as();
                self.measured.ran_out(&key, mb);
            }
        }
        if attempt.class() == Class::Llm {
            self.llm_attempt_ended(&record.outcome);
        }
        let succeeded = record.outcome == Outcome::Succeeded;
        let seconds = attempt.started().elapsed().as_secs_f64();
        let vram = record
            .peaks
            .vram_mb
            .map_or(String::new(), |mb| format!(", VRAM peak {mb}MB"));
        let reason = record
            .outcome
            .reason()
            .map_or(String::new(), |why| format!(" - {why}"));
        tracing::info!(
            task = %record.id,
            attempt = record.attempt,
            batch = %record.batch,
            agent = %self.name,
            "Worker {} finished: {} ({seconds:.1}s{vram}){reason}",
            attempt.worker_id(),
            if succeeded { "OK" } else { "FAIL" }
        );
        if let Some(mb) = peak_mb {
            let key = attempt.running.spec.measured_as();
            // A failure may have come before the memory was needed: it proves a peak to be at
            // least so much, but not that so much is enough.
            if succeeded {
                self.measured.note(&key, mb);
            } else {
                self.measured.takes(&key, mb);
            }
        }
        self.give_back_memory(attempt.lease.as_deref());
        self.worked(attempt.class());
        self.committer.finish(Job {
            name: attempt.running.name,
            record,
            rewrite: false,
        });
    }

    pub(crate) fn give_back_memory(&mut self, lease: Option<&str>) {
        if let (Some(device), Some(lease)) = (&mut self.device, lease) {
            device.release(lease);
        }
    }

    /// The model's runtime is gone: the llm tasks that run see their requests fail and end by
    /// themselves, and go elsewhere without being charged.
    pub(crate) fn lose_llm_attempts(&mut self, reason: &str) {
        for attempt in &mut self.attempts.running {
            if attempt.class() == Class::Llm {
                attempt.lost.get_or_insert_with(|| reason.to_owned());
            }
        }
    }

    /// Ends what runs on a GPU that is gone; the tasks go elsewhere without being charged.
    pub(crate) fn abandon_gpu_attempts(&mut self, reason: &str) {
        for attempt in &mut self.attempts.running {
            if matches!(attempt.class(), Class::Script | Class::Llm) {
                attempt.lost = Some(reason.to_owned());
                let ended =
                    attempt
                        .running
                        .kill(&self.containment, self.config.timing.grace, reason);
                if let Err(error) = ended {
                    tracing::error!("{error}");
                }
            }
        }
        self.reap();
    }

    /// Kills what runs, records nothing.
    pub(crate) fn kill_running(&self) {
        for attempt in self.attempts.iter() {
            let why = "the agent was stopped";
            if let Err(error) =
                attempt
                    .running
                    .kill(&self.containment, self.config.timing.grace, why)
            {
                tracing::error!("{error}");
            }
        }
    }

    /// The attempt of a signal's name, if it runs here.
    pub(crate) fn attempt(&self, stem: &str) -> Option<&Running> {
        let found = self
            .attempts
            .running
            .iter()
            .find(|one| one.name().attempt_stem() == stem);
        found.map(|attempt| &attempt.running)
    }

    /// What the committer has done.
    pub(crate) fn finished(&mut self, finished: Vec<Finished>) {
        self.committer.pending -= finished.len();
        for Finished { job, lane } in finished {
            let id = job.record.id;
            match lane {
                Ok(Lane::Complete) => self.counts.add_completed(),
                Ok(Lane::Retry) => self.counts.add_failed(),
                Ok(Lane::Queue) => {
                    tracing::info!(task = %id, "Task {} is back in the queue", id.short());
                }
                Ok(lane) => tracing::warn!(task = %id, "Task {} went to {lane}", id.short()),
                Err(error @ ExecError::NotOurs { .. }) => {
                    tracing::warn!(task = %id, "Fenced: {error}");
                }
                Err(error) => {
                    self.attempts.unfinished.push(job);
                    self.in_trouble(&error.to_string());
                }
            }
        }
        if self.trouble.is_some() {
            self.trouble_over();
        }
    }

    /// What the committer could not do. The bytes of a failed fsync are not trusted later either:
    /// the records are written anew.
    pub(crate) fn commit_failed(&mut self, jobs: Vec<Job>, error: &rigor_queue::QueueError) {
        self.committer.pending -= jobs.len();
        let again = jobs.into_iter().map(|job| Job {
            rewrite: true,
            ..job
        });
        self.attempts.unfinished.extend(again);
        self.in_trouble(&error.to_string());
    }

    /// Tries again what a full disk, say, has put off.
    pub(crate) fn retry_postponed(&mut self) {
        for (attempt, status) in std::mem::take(&mut self.attempts.unsettled) {
            self.settle_attempt(attempt, status);
        }
        for (name, outcome) in std::mem::take(&mut self.attempts.unstarted) {
            self.not_started(name, outcome);
        }
        for job in std::mem::take(&mut self.attempts.unfinished) {
            self.committer.finish(job);
        }
    }
}

fn setup_failure(reason: String) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::Setup,
        reason,
    }
}

/// Whether a worker did not start for what its task puts into the environment: too long, or a NUL.
fn is_of_the_task(source: &std::io::Error) -> bool {
    matches!(
        source.kind(),
        ErrorKind::ArgumentListTooLong | ErrorKind::InvalidInput
    )
}
