//! The resources that a process has used so far (Linux only).

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// The current memory of the process with this id, in kB.
#[must_use]
pub fn memory(id: u32) -> Option<u64> {
    status(id, "VmRSS:")
}

/// The largest memory of the process with this id so far, in kB.
#[must_use]
pub fn peak_memory(id: u32) -> Option<u64> {
    status(id, "VmHWM:")
}

/// The processor time of a process so far, in the program and in the system, to 10 ms. It is known until the exit status
/// of the process is collected.
#[must_use]
pub fn processor_time(id: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    time_of(processor_ticks(&stat)?)
}

/// The processor time of all processes of a group, with those of their children that have ended. A
/// [`Process`](crate::process::Process) has a group of its own, whose number is its id.
#[must_use]
pub fn group_processor_time(group: u32) -> Option<Duration> {
    let stats = fs::read_dir("/proc").ok()?.flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    time_of(stats.filter_map(|stat| group_ticks(&stat, group)).sum())
}

fn time_of(ticks: u64) -> Option<Duration> {
    let ticks_a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_micros(ticks * 1_000_000 / ticks_a_second.max(1)))
}

/// The ticks of a process and of its children that have ended, if it is in this group.
fn group_ticks(stat: &str, group: u32) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(2);
    let is_in_group = fields.next()?.parse() == Ok(group);
    let times = fields.skip(8).take(4).filter_map(|field| field.parse::<u64>().ok());
    is_in_group.then(|| times.sum())
}

fn processor_ticks(stat: &str) -> Option<u64> {
    // The second field is the name of the program in brackets, which may contain spaces and brackets.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

fn status(id: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_program_and_in_the_system_are_added() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 500 0 2 0 17 4 4 0 20 0 1 0 9000 1000 200";
        assert_eq!(processor_ticks(stat), Some(21));
        // Its children that have ended, 4 and 0 ticks, count with its group, which is 42 as well.
        assert_eq!((group_ticks(stat, 42), group_ticks(stat, 43)), (Some(25), None));
    }

    #[test]
    fn process_has_used_memory_and_time() {
        let own = std::process::id();
        assert!(processor_time(own).is_some());
        // Does not compare them: the kernel counts for each processor, and adds the counts from time to time.
        assert!(memory(own).unwrap() > 0 && peak_memory(own).unwrap() > 0);
    }
}
