//! What the system says of a process: CPU time and memory, from `/proc`. `None` where there is none.

use std::fs;

/// Clock ticks a second in `/proc/PID/stat`: fixed by the kernel's interface to programs.
const TICKS: u64 = 100;

/// User and system time of a process so far, all threads, microseconds (in steps of 10 ms).
pub fn cpu_us(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_cpu_us(&text)
}

/// The same in smaller steps where the system tells: the sum over its threads, but not less than
/// [`cpu_us`], which knows of threads that have ended.
pub fn precise_cpu_us(pid: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        let ns: u64 = text.split_ascii_whitespace().next()?.parse().ok()?;
        Some(ns / 1000)
    };
    let all = threads.filter_map(|entry| of(entry.ok()?.path()));
    cpu_us(pid).map(|steps| steps.max(all.sum()))
}

fn stat_cpu_us(text: &str) -> Option<u64> {
    // The program's name may hold spaces and brackets.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000_000 / TICKS))
}

/// Largest resident size so far, bytes.
pub fn peak_rss(pid: u32) -> Option<u64> {
    memory(pid, "VmHWM:")
}

/// Resident size now, bytes.
pub fn rss(pid: u32) -> Option<u64> {
    memory(pid, "VmRSS:")
}

/// Open file descriptors.
pub fn descriptors(pid: u32) -> Option<u64> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    u64::try_from(all.count()).ok()
}

fn memory(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_behind_a_name_with_brackets() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194304 1 0 0 0 150 50 7 7 20 0 3 0 1 2 3";
        assert_eq!(stat_cpu_us(text), Some(2_000_000));
    }
}
