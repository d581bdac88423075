//! A Postgres server for one test, from the system's packages.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this};
use testkit::reserved_ports::ReservedPorts;
use tokio::process::Command;

/// The user of the server if the tests run as root, because the server refuses to run as root.
const NOBODY: u32 = 65534;

/// A server with a database `orders`. The operating system has its writes before a commit is confirmed, so they survive
/// a kill. This does not simulate a loss of power.
pub struct Postgres {
    server: Option<Process>,
    port: u16,
    directory: TempDir,
    _held: ReservedPorts,
}

impl Postgres {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("orders-postgres-").tempdir().unwrap();
        if runs_as_root(directory.path()) {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let (held, port) = ReservedPorts::free().unwrap();
        let mut postgres = Self { server: None, port, directory, _held: held };
        let mut initdb = postgres.command("initdb");
        initdb.args(["--username", "orders", "--auth", "trust", "--no-sync", "--locale", "C"]);
        let output = initdb.arg("--encoding=UTF8").output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        postgres.restart().await;
        postgres.connect_to("postgres").await.execute("CREATE DATABASE orders").await.unwrap();
        postgres
    }

    pub fn url(&self) -> String {
        self.url_of("orders")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://orders@127.0.0.1:{}/{database}", self.port)
    }

    /// A connection for the test.
    pub async fn connect(&self) -> PgConnection {
        self.connect_to("orders").await
    }

    async fn connect_to(&self, database: &str) -> PgConnection {
        let url = self.url_of(database);
        eventually("Postgres answers", async || PgConnection::connect(&url).await).await
    }

    /// Kills the server, with its open transactions.
    pub async fn kill(&mut self) {
        let mut stop = self.command("pg_ctl");
        let output = stop.args(["stop", "--mode", "immediate"]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        self.server.take().unwrap().wait().await.unwrap();
    }

    pub async fn restart(&mut self) {
        let mut server = self.command("postgres");
        server.arg("-p").arg(self.port.to_string());
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"] {
            server.args(["-c", setting]);
        }
        let log = self.directory.path().join("log");
        self.server = Some(Process::spawn(server, log).unwrap());
        self.connect_to("postgres").await;
    }

    /// A program of Postgres on the data of this server.
    fn command(&self, name: &str) -> Command {
        let mut command = bound_to_this(find(name));
        if runs_as_root(Path::new("/proc/self")) {
            command.as_std_mut().uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(self.directory.path());
        command.env("PGDATA", self.directory.path().join("data"));
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its children end as well, and write no more into the directory, which is removed.
        let mut stop = self.command("pg_ctl");
        let _ = stop.args(["stop", "--mode", "immediate"]).as_std_mut().output();
    }
}

/// Whether a file of this process belongs to root.
fn runs_as_root(ours: &Path) -> bool {
    fs::metadata(ours).is_ok_and(|ours| ours.uid() == 0)
}

/// A program of Postgres, from the PATH or from the directory of Debian.
fn find(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = installed.map(|version| version.path().join("bin"));
    let mut found = env::split_paths(&path).chain(installed).map(|directory| directory.join(name));
    found.find(|program| program.is_file()).unwrap_or_else(|| {
        panic!("there is no {name}: install Postgres, such as by `apt-get install postgresql`")
    })
}
