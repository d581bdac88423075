//! Programs as child processes: to run them, and to break them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::eventually::eventually;
use crate::http;
use crate::usage;

/// The time limit for the answer of a process that is asked whether it is ready.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The program, part of util-linux, that makes Linux kill a child with its parent.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A command whose process ends with this program, even if this program is killed. Needs Linux and `setpriv`.
#[must_use]
pub fn bound_to_this(program: impl AsRef<OsStr>) -> Command {
    if !cfg!(target_os = "linux") || !Path::new(SETPRIV).exists() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    // `setpriv` replaces itself by the program.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A child process, which is killed when this is dropped.
///
/// It is in a process group of its own: a Ctrl-C at the terminal reaches only its parent, which then stops its children
/// gracefully. Signals go to the whole group, so they also reach a program that a script has started. Its output goes to
/// a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    id: u32,
    log: PathBuf,
}

impl Process {
    /// Starts the program. Its output is appended to the file `log`.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, or the program cannot be started.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(mut command: Command, log: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let log = log.into();
        let program = command.as_std().get_program().to_owned();
        let opened = File::options().create(true).append(true).open(&log);
        let output = opened.with_context(|| format!("cannot open the log {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let id = child.id().context("the process ended before it had an id")?;
        Ok(Self { child, id, log })
    }

    /// The id of the process. Once it has ended and was waited for, the operating system may reuse the id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Asks it to stop (SIGTERM). A paused process gets the signal once it is resumed.
    ///
    /// # Errors
    ///
    /// If it has ended and was waited for.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGINT, like a Ctrl-C at its terminal.
    ///
    /// # Errors
    ///
    /// If it has ended and was waited for.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGINT)
    }

    /// Sends SIGHUP, as a closed terminal does.
    ///
    /// # Errors
    ///
    /// If it has ended and was waited for.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Freezes it (SIGSTOP): it keeps its connections, and does nothing.
    ///
    /// # Errors
    ///
    /// If it has ended and was waited for.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it run again after [`Self::pause`] (SIGCONT).
    ///
    /// # Errors
    ///
    /// If it has ended and was waited for.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills it (SIGKILL), and waits until it has ended. It may have ended by itself before.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        if self.try_wait()?.is_none()
            && let Err(error) = self.signal(Signal::SIGKILL)
            // It may have ended in between, and some systems refuse to kill an ended process.
            && self.try_wait()?.is_none()
        {
            return Err(error);
        }
        self.wait().await
    }

    /// Waits until it has ended, without a time limit.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("cannot wait for process {}", self.id))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot look at process {}", self.id))
    }

    /// The file that it prints to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its output so far, or the reason for which it cannot be read: a text for people, mostly in errors.
    #[must_use]
    pub fn log_text(&self) -> String {
        log_text(&self.log)
    }

    /// The address behind the first occurrence of this sign in its log, once it is there.
    #[must_use]
    pub fn logged_addr(&self, sign: &str) -> Option<SocketAddr> {
        let log = self.log_text();
        let (_, rest) = log.split_once(sign)?;
        // The last line may be incomplete, and end within the address.
        let (line, _) = rest.split_once('\n')?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Whether it has logged the address of its admin endpoint, and reports there that it is ready.
    pub async fn is_ready(&self) -> bool {
        let Some(addr) = self.logged_addr("admin endpoint listens addr=") else { return false };
        // A process that is paused gives no answer.
        let answer = timeout(ANSWER_LIMIT, http::get(addr, "/readyz")).await;
        matches!(answer, Ok(Ok((200, _))))
    }

    /// Its current memory in kB (Linux only).
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        usage::memory(self.id)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // The child has an id until its exit status is collected, and until then the
        // operating system gives that id to no other process, nor to another group.
        let id = self
            .child
            .id()
            .with_context(|| format!("process {} has ended: cannot send {signal}", self.id))?;
        let pid = Pid::from_raw(id.try_into().context("no process has such an id")?);
        signal::killpg(pid, signal).with_context(|| format!("cannot send {signal} to process {id}"))
    }
}

impl Drop for Process {
    /// Kills it and waits, so that its files can be removed afterwards.
    fn drop(&mut self) {
        // The error for a process that has ended already is of no interest.
        let _ = self.signal(Signal::SIGKILL);
        let limit = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < limit {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The text of a log file, or the reason for which it cannot be read.
pub(crate) fn log_text(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(cannot read {}: {error})", log.display()),
    }
}

/// Waits until a process has logged this.
///
/// # Panics
///
/// After a minute, with its whole log.
pub async fn logged(process: &Process, text: &str) {
    eventually(&format!("'{text}' in the log"), async || {
        let log = process.log_text();
        if log.contains(text) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(script: &str, directory: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command, directory.join("log")).unwrap()
    }

    #[tokio::test]
    async fn process_logs_its_output_and_returns_its_exit_status() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell("echo out; echo err >&2; exit 3", directory.path());
        assert_eq!(process.wait().await.unwrap().code(), Some(3));
        assert_eq!(process.log_text(), "out\nerr\n");
        assert_eq!(process.kill().await.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn signals_pause_resume_and_end_a_process() {
        let directory = tempfile::tempdir().unwrap();
        // No shell: a shell that was started with SIGINT ignored, as background jobs are, cannot change that.
        let script = "
import signal
for name in 'TERM', 'INT':
    signal.signal(signal.Signals['SIG' + name], lambda *_, name=name: print(name, flush=True))
print('ready', flush=True)
while True:
    signal.pause()
";
        let mut command = Command::new("python3");
        command.args(["-c", script]);
        let mut process = Process::spawn(command, directory.path().join("log")).unwrap();
        logged(&process, "ready").await;
        process.terminate().unwrap();
        logged(&process, "TERM").await;
        process.interrupt().unwrap();
        logged(&process, "INT").await;
        process.pause().unwrap();
        process.resume().unwrap();
        assert_eq!(process.try_wait().unwrap(), None);
        assert_eq!(process.kill().await.unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    #[tokio::test]
    async fn ended_process_is_not_signalled() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell("exit 0", directory.path());
        process.wait().await.unwrap();
        let error = process.terminate().unwrap_err().to_string();
        assert!(error.contains("has ended"), "{error}");
    }

    #[tokio::test]
    async fn dropped_process_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 600", directory.path());
        let pid = Pid::from_raw(process.id().try_into().unwrap());
        signal::kill(pid, None).unwrap();
        drop(process);
        assert_eq!(signal::kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
