//! The machine of a measurement.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use jiff::Timestamp;
use serde::Serialize;

/// The machine, and the versions of the programs.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The number of processors.
    pub cores: usize,
    /// Their model.
    pub processor: String,
    /// The system and its version.
    pub kernel: String,
    /// The file system of the broker's store.
    pub file_system: String,
    /// The version of the broker.
    pub broker: String,
    /// The compiler of the services.
    pub compiler: String,
    /// The commit of the sources, and whether they have changed since.
    pub commit: String,
    /// When it was measured.
    pub at: Timestamp,
}

const UNKNOWN: &str = "unknown";

impl Machine {
    /// This machine, on which this broker keeps its messages in that directory.
    pub(super) fn here(broker: &Path, directory: &Path) -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let commit = ["-C", &sources.to_string_lossy(), "describe", "--always", "--dirty"];
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            processor: processor(&cpus).unwrap_or(UNKNOWN).to_owned(),
            kernel: said_by("uname", &["-s", "-r", "-m"]),
            file_system: file_system(&mounts, directory).unwrap_or(UNKNOWN).to_owned(),
            broker: said_by(&broker.to_string_lossy(), &["--version"]),
            compiler: said_by("rustc", &["--version"]),
            commit: said_by("git", &commit),
            at: Timestamp::now().round(jiff::Unit::Second).unwrap_or_default(),
        }
    }
}

pub(super) fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.ok().filter(|said| !said.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned())
}

fn processor(cpus: &str) -> Option<&str> {
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// The kind of the file system that is mounted nearest above the directory.
fn file_system<'a>(mounts: &'a str, directory: &Path) -> Option<&'a str> {
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (Path::new(fields.next()?), fields.next()?);
        directory.starts_with(point).then(|| (point.components().count(), kind))
    });
    // Of two file systems at the same place the later one counts.
    mounted.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_is_the_one_that_is_mounted_nearest() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmp/a xfs rw 0 0\n";
        for (directory, kind) in
            [("/tmp/a/b", "xfs"), ("/tmp/ab", "tmpfs"), ("/tmp", "tmpfs"), ("/home", "ext4")]
        {
            assert_eq!(file_system(mounts, Path::new(directory)), Some(kind), "{directory}");
        }
    }

    #[test]
    fn processor_has_the_name_of_the_system() {
        let cpus = "processor\t: 0\nmodel name\t: Some: Thing\n";
        assert_eq!(processor(cpus), Some("Some: Thing"));
        assert_eq!(processor(""), None);
    }
}
