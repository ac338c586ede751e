//! Who, other than us, holds memory of a GPU, and how to get it back.

use std::fmt;
use std::fs;

use crate::reading::Reading;

/// A process of somebody else's on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its program's name; none where the process is not visible from here (another container, or
    /// it ended since).
    pub name: Option<String>,
    /// MiB; none where the driver does not tell.
    pub used_mb: Option<u64>,
    /// How to get the memory back.
    pub remedy: String,
}

impl fmt::Display for Holder {
    /// `5100 MB held by ollama (pid 2210)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.used_mb {
            Some(mb) => write!(f, "{mb} MB")?,
            None => write!(f, "memory")?,
        }
        let name = self
            .name
            .as_deref()
            .unwrap_or("a process not visible from here");
        write!(f, " held by {name} (pid {})", self.pid)
    }
}

/// The processes of `reading` that are not `ours`, the largest first, named from `/proc`.
pub fn holders(reading: &Reading, ours: impl Fn(u32) -> bool) -> Vec<Holder> {
    let mut holders: Vec<Holder> = reading
        .processes
        .iter()
        .filter(|process| !ours(process.pid))
        .map(|process| {
            let name = program(process.pid);
            let remedy = remedy(process.pid, name.as_deref(), service(process.pid).as_ref());
            Holder {
                pid: process.pid,
                name,
                used_mb: process.used_mb,
                remedy,
            }
        })
        .collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.used_mb));
    holders
}

/// A systemd unit.
#[derive(Debug, PartialEq)]
struct Service {
    name: String,
    /// Of the user's own manager, not the system's.
    user: bool,
}

fn program(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn service(pid: u32) -> Option<Service> {
    service_of(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The innermost service of a `/proc/PID/cgroup`.
fn service_of(cgroup: &str) -> Option<Service> {
    cgroup.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let name = path.split('/').rfind(|part| part.ends_with(".service"))?;
        // What a user's manager runs outside any service of its own is in its own unit.
        if name.starts_with("user@") {
            return None;
        }
        Some(Service {
            name: name.to_owned(),
            user: path.contains("/user@"),
        })
    })
}

fn remedy(pid: u32, name: Option<&str>, service: Option<&Service>) -> String {
    let Some(name) = name else {
        return "find it with `nvidia-smi` on the host, outside this container".to_owned();
    };
    let stop = match service {
        Some(Service { name, user: true }) => format!("`systemctl --user stop {name}`"),
        Some(Service { name, user: false }) => format!("`sudo systemctl stop {name}`"),
        None => format!("`kill {pid}`"),
    };
    if name.starts_with("ollama") {
        return format!("free it with `ollama ps` and `ollama stop MODEL`, or {stop}");
    }
    if DESKTOP_PROGRAMS.contains(&name) {
        return "it is the desktop: use another GPU for the screen, or lower `vram_share` in rig.toml".to_owned();
    }
    format!("free it with {stop}")
}

/// Whom to stop would end the user's session.
const DESKTOP_PROGRAMS: [&str; 7] = [
    "Xorg",
    "Xwayland",
    "gnome-shell",
    "kwin_x11",
    "kwin_wayland",
    "plasmashell",
    "sway",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::GpuProcess;

    #[test]
    fn a_holder_is_named_from_proc_and_ours_are_left_out() {
        let (own, gone) = (std::process::id(), u32::MAX);
        let process = |pid, mb| GpuProcess {
            pid,
            used_mb: Some(mb),
        };
        let reading = Reading {
            processes: vec![process(1, 7), process(own, 100), process(gone, 5100)],
            ..Reading::default()
        };

        let found = holders(&reading, |pid| pid == 1);

        assert_eq!(
            found.iter().map(|holder| holder.pid).collect::<Vec<_>>(),
            [gone, own]
        );
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(
            found[1].to_string(),
            format!("100 MB held by {} (pid {own})", comm.trim_end())
        );
        assert_eq!(
            found[0].to_string(),
            format!("5100 MB held by a process not visible from here (pid {gone})")
        );
    }

    #[test]
    fn the_remedy_fits_the_holder() {
        let system = Service {
            name: "ollama.service".into(),
            user: false,
        };
        let user = Service {
            name: "comfy.service".into(),
            user: true,
        };
        assert_eq!(
            remedy(2210, Some("ollama"), Some(&system)),
            "free it with `ollama ps` and `ollama stop MODEL`, or `sudo systemctl stop ollama.service`"
        );
        assert_eq!(
            remedy(7, Some("python3"), Some(&user)),
            "free it with `systemctl --user stop comfy.service`"
        );
        assert_eq!(remedy(7, Some("python3"), None), "free it with `kill 7`");
        assert!(remedy(7, Some("Xorg"), None).contains("vram_share"));
    }

    #[test]
    fn the_innermost_service_counts() {
        let system = service_of("0::/system.slice/ollama.service\n");
        assert_eq!(
            system,
            Some(Service {
                name: "ollama.service".into(),
                user: false
            })
        );
        let user = service_of(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/comfy.service\n",
        );
        assert_eq!(
            user,
            Some(Service {
                name: "comfy.service".into(),
                user: true
            })
        );
        for none in [
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/tmux.scope\n",
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "0::/\n",
            "",
        ] {
            assert_eq!(service_of(none), None, "{none}");
        }
    }
}
