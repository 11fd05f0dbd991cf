//! What processes have used, from `/proc` (proc(5)).

/// Clock ticks a second in `/proc/PID/stat`: Linux shows 100 on every machine.
const TICKS_PER_S: f64 = 100.0;

/// What a set of processes has used since they were started.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Used {
    pub cpu_s: f64,
    pub rss_mib: f64,
    /// Handed to disks. What the file system writes on its own (its journal) is not in it.
    pub written_bytes: f64,
}

pub struct Meter {
    pids: Vec<u32>,
    before: Used,
}

impl Meter {
    pub fn start(pids: &[u32]) -> Meter {
        Meter { pids: pids.to_vec(), before: used(pids) }
    }

    pub fn stop(self) -> Used {
        let after = used(&self.pids);
        Used {
            cpu_s: after.cpu_s - self.before.cpu_s,
            rss_mib: after.rss_mib,
            written_bytes: after.written_bytes - self.before.written_bytes,
        }
    }
}

pub fn used(pids: &[u32]) -> Used {
    let mut sum = Used::default();
    for pid in pids {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        sum.cpu_s += cpu_ticks(&read("stat")) / TICKS_PER_S;
        sum.rss_mib += field(&read("status"), "VmRSS:") / 1024.0;
        sum.written_bytes += field(&read("io"), "write_bytes:");
    }
    sum
}

/// User and system time: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu_ticks(stat: &str) -> f64 {
    let behind = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    behind.split_whitespace().skip(11).take(2).filter_map(|number| number.parse::<f64>().ok()).sum()
}

/// The first number of the line that begins with `name`.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_where_proc_has_them() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 7 1 2";
        assert_eq!(cpu_ticks(stat), 300.0);
        assert_eq!(field("VmPeak:\t 9 kB\nVmRSS:\t   2048 kB\n", "VmRSS:"), 2048.0);
        assert_eq!(field("", "VmRSS:"), 0.0);
        assert!(used(&[std::process::id()]).rss_mib > 0.0);
    }
}
