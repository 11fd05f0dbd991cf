//! How much memory there is to use.

use std::fs;
use std::path::Path;

/// The share of it that goes to larger chunks which are read again and again: direct I/O leaves nothing in the page cache.
const LARGE_CHUNKS_SHARE: u64 = 64;

/// Memory for larger chunks, in bytes, of each of so many disks; none where the system does not say how much there is.
pub fn for_large_chunks(disks: usize) -> usize {
    let bytes = usable().unwrap_or(0) / LARGE_CHUNKS_SHARE / disks.max(1) as u64;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Bytes that this process may use: the machine's, or fewer where its control group (version 2) is limited.
fn usable() -> Option<u64> {
    let machine = of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_of(&own).and_then(|group| {
        let file = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/')).join("memory.max");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    Some(limit.unwrap_or(u64::MAX).min(machine))
}

/// From `/proc/meminfo` (proc_meminfo(5)).
fn of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The path of a process's control group of version 2, from `/proc/PID/cgroup` (cgroups(7)).
fn group_of(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_read_and_shared_by_disks() {
        let meminfo = "MemTotal:       24606400 kB\nMemFree:          123 kB\n";
        assert_eq!(of_machine(meminfo), Some(24_606_400 * 1024));
        for other in ["", "MemFree: 1 kB", "MemTotal: many kB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(of_machine(other), None, "{other}");
        }
        assert_eq!(
            group_of("1:name=systemd:/x\n0::/system.slice/henge.service\n"),
            Some("/system.slice/henge.service")
        );
        assert_eq!(group_of("4:memory:/docker/1\n"), None);
        assert!(usable().is_some_and(|bytes| bytes > 64 << 20));
        assert_eq!(for_large_chunks(3), for_large_chunks(1) / 3);
    }
}
