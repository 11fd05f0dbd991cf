//! How much memory there is to use.

use std::fs;
use std::path::Path;

/// The share of it that goes to larger chunks which are read again and again: direct I/O leaves nothing in the page cache.
const LARGE_CHUNKS_SHARE: u64 = 64;

/// Memory for larger chunks, in bytes, of each of so many disks; none where the system does not say how much there is.
pub fn for_large_chunks(disks: usize) -> usize {
    let bytes = usable(Path::new("/")).unwrap_or(0) / LARGE_CHUNKS_SHARE / disks.max(1) as u64;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Bytes that this process may use: the machine's, or fewer where its control group, or one above, is limited.
fn usable(root: &Path) -> Option<u64> {
    let machine = of_machine(&fs::read_to_string(root.join("proc/meminfo")).ok()?)?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| of_groups(&root.join("sys/fs/cgroup"), line));
    Some(limits.fold(machine, u64::min))
}

/// From `/proc/meminfo` (proc_meminfo(5)).
fn of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of a group and those above it, for a line `HIERARCHY:CONTROLLERS:PATH` of `/proc/self/cgroup` (cgroups(7)).
/// In a container the path may be one of the host's, and only the root is there.
fn of_groups(mounted: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (top, files) = match controllers {
        "" => (mounted.to_owned(), ["memory.max", "memory.high"].as_slice()),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (mounted.join("memory"), ["memory.limit_in_bytes"].as_slice())
        }
        _ => return None,
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    let limit = |group: &Path, file: &str| fs::read_to_string(top.join(group).join(file)).ok()?.trim().parse().ok();
    groups.filter_map(|group| files.iter().filter_map(|file| limit(group, file)).min()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::ScratchDir;

    #[test]
    fn the_least_limit_counts() {
        let root = ScratchDir::new("memory");
        let write = |file: &str, content: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        };
        assert_eq!(usable(root.path()), None);
        write("proc/meminfo", "MemTotal:       8388608 kB\nMemFree:          123 kB\n");
        assert_eq!(usable(root.path()), Some(8 << 30));
        write("proc/self/cgroup", "9:cpu,memory:/docker/1\n0::/system.slice/henge.service\n");
        assert_eq!(usable(root.path()), Some(8 << 30));
        write("sys/fs/cgroup/system.slice/henge.service/memory.max", "max\n");
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(usable(root.path()), Some(8 << 30));
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000000000\n");
        assert_eq!(usable(root.path()), Some(7_000_000_000));
        write("sys/fs/cgroup/system.slice/memory.high", "6000000000\n");
        assert_eq!(usable(root.path()), Some(6_000_000_000));
        write("sys/fs/cgroup/system.slice/henge.service/memory.max", "5000000000\n");
        assert_eq!(usable(root.path()), Some(5_000_000_000));
        write("sys/fs/cgroup/other/memory.max", "1\n");
        assert_eq!(usable(root.path()), Some(5_000_000_000));
        for other in ["", "MemFree: 1 kB", "MemTotal: many kB", "MemTotal: 18446744073709551615 kB"] {
            write("proc/meminfo", other);
            assert_eq!(usable(root.path()), None, "{other}");
        }
    }

    #[test]
    fn disks_share_it() {
        assert!(for_large_chunks(1) > 1 << 20);
        assert_eq!(for_large_chunks(3), for_large_chunks(1) / 3);
        assert_eq!(for_large_chunks(0), for_large_chunks(1));
    }
}
