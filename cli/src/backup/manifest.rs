//! The manifest of a backup: the list of its parts, in a file that is written last.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::stream::State;
use contract::{facts, queues};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::fs::{self, DirBuilder, File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use workqueue::dead_letters;

/// The file that makes a directory a backup.
const FILE: &str = "manifest.json";

/// Its name while it is written.
const UNFINISHED: &str = "manifest.json.unfinished";

/// The version of the manifest that this program writes and reads.
const VERSION: u32 = 1;

/// The streams of a backup, in the order in which they are backed up and restored. The queues come last: an aborted
/// restore leaves no work whose facts are missing, which would be done again.
pub(super) fn streams() -> Vec<&'static str> {
    let buckets = facts::ALL.iter().map(|bucket| bucket.stream);
    let queues = queues::ALL.iter().map(|queue| queue.stream);
    buckets.chain([dead_letters::STREAM]).chain(queues).collect()
}

/// The name of the file that has this stream.
pub(super) fn file(stream: &str) -> String {
    format!("{stream}.snapshot")
}

/// Removes the files of a backup that is not done when this is dropped: it failed, or a signal ended the command.
pub(super) struct Unfinished<'a>(pub(super) &'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The manifest first. A file that cannot be removed is no backup either without it.
        let snapshots = streams().into_iter().map(file);
        for name in [FILE.to_owned(), UNFINISHED.to_owned()].into_iter().chain(snapshots) {
            let _ = std::fs::remove_file(self.0.join(name));
        }
    }
}

/// The part of a file that is in memory at a time.
const CHUNK: usize = 128 * 1024;

/// The list of the parts of a backup.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Manifest {
    version: u32,
    /// When it was made.
    pub(super) made_at: Timestamp,
    /// The version of its broker. An older broker cannot read it.
    pub(super) broker: String,
    /// The streams, in the order in which they are restored.
    pub(super) streams: Vec<KeptStream>,
}

/// A stream in a backup.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct KeptStream {
    pub(super) name: String,
    /// The size of the file that has its snapshot.
    pub(super) bytes: u64,
    /// The SHA-256 of that file, in hexadecimal digits.
    pub(super) sha256: String,
    /// Its configuration as the broker reports it, which may have more fields than this program knows. Its creation
    /// time is in its metadata.
    pub(super) config: Value,
    /// Its state as the broker reports it.
    pub(super) state: Value,
    /// Its durable consumers. A bucket has none.
    pub(super) consumers: Vec<KeptConsumer>,
}

/// A consumer in a backup.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct KeptConsumer {
    pub(super) name: String,
    /// See [`outstanding`].
    pub(super) outstanding: u64,
    /// The number of messages that it has settled, and that the broker had not removed from the queue when it crashed.
    #[serde(default)]
    pub(super) settled: u64,
}

/// The number of messages that a consumer has not delivered yet, or that are not settled.
pub(super) fn outstanding(consumer: &ConsumerInfo) -> u64 {
    consumer.num_pending + u64::try_from(consumer.num_ack_pending).unwrap_or(u64::MAX)
}

/// The manifest with its own checksum, because the configuration of the streams is in no other file.
#[derive(Deserialize, Serialize)]
struct ManifestFile {
    sha256: String,
    backup: Value,
}

impl KeptStream {
    /// Its state when it was backed up.
    pub(super) fn state(&self) -> anyhow::Result<State> {
        let state = serde_json::from_value(self.state.clone());
        state.with_context(|| format!("the broker describes {} in an unknown way", self.name))
    }
}

/// The file of the manifest in the directory of a backup.
fn find(directory: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join(FILE);
    match path.try_exists() {
        Ok(true) => Ok(path),
        Ok(false) => bail!("{} is not a complete backup: it has no {FILE}", directory.display()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Manifest {
    pub(super) fn new(made_at: Timestamp, broker: String, streams: Vec<KeptStream>) -> Self {
        Self { version: VERSION, made_at, broker, streams }
    }

    /// Writes it into a directory, which is a durable backup from then on.
    pub(super) async fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot write the manifest into {}", directory.display());
        let backup = serde_json::to_value(self)?;
        let sealed = ManifestFile { sha256: digest(&backup), backup };
        let unfinished = directory.join(UNFINISHED);
        let written = async {
            let mut file = create(&unfinished).await?;
            file.write_all(&serde_json::to_vec_pretty(&sealed)?).await?;
            finish(&mut file).await?;
            // First sync the directory and the names of the other files: the name of this file makes it a backup.
            if let Some(parent) = fs::canonicalize(directory).await?.parent() {
                sync(parent).await?;
            }
            sync(directory).await?;
            fs::rename(&unfinished, directory.join(FILE)).await?;
            sync(directory).await?;
            anyhow::Ok(())
        };
        written.await.with_context(what)
    }

    /// Reads it from a directory, and compares all files with it.
    pub(super) async fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = find(directory)?;
        let text = fs::read(&path).await;
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let damaged = || format!("{} is damaged", path.display());
        let ManifestFile { sha256, backup } =
            serde_json::from_slice(&text).with_context(damaged)?;
        ensure!(sha256 == digest(&backup), "{}: its checksum differs", damaged());
        let version = &backup["version"];
        ensure!(
            *version == VERSION,
            "{} has version {version}, and this program reads only version {VERSION}",
            path.display()
        );
        let manifest: Self = serde_json::from_value(backup).with_context(damaged)?;
        let names: Vec<&str> = manifest.streams.iter().map(|stream| stream.name.as_str()).collect();
        ensure!(
            names == streams(),
            "{} is a backup of other streams: {}",
            directory.display(),
            names.join(", ")
        );
        for stream in &manifest.streams {
            check(&directory.join(file(&stream.name)), stream).await?;
        }
        Ok(manifest)
    }
}

/// Compares a file with its entry in the manifest.
async fn check(path: &Path, stream: &KeptStream) -> anyhow::Result<()> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).await.with_context(what)?;
    let bytes = file.metadata().await.with_context(what)?.len();
    ensure!(
        bytes == stream.bytes,
        "{} is damaged: its size is {bytes}, and should be {}",
        path.display(),
        stream.bytes
    );
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).await.with_context(what)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    ensure!(
        hexadecimal(&hash) == stream.sha256,
        "{} is damaged: its checksum differs",
        path.display()
    );
    Ok(())
}

/// Creates the directory of a backup, or checks that it is empty.
pub(super) async fn prepare(directory: &Path) -> anyhow::Result<()> {
    make(directory).await?;
    has_room(directory).await
}

async fn make(directory: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot create {}", directory.display());
    DirBuilder::new().recursive(true).mode(0o700).create(directory).await.with_context(what)
}

/// Refuses a directory that is not empty, or cannot be created. It need not exist.
pub(super) async fn has_room(directory: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot look into {}", directory.display());
    let mut entries = match fs::read_dir(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // It is created with the backup. Whether that is possible is checked now.
            let is_missing = |it: &&Path| !it.as_os_str().is_empty() && !it.exists();
            let missing: Vec<&Path> = directory.ancestors().take_while(is_missing).collect();
            make(directory).await?;
            for made in missing {
                if fs::remove_dir(made).await.is_err() {
                    break;
                }
            }
            return Ok(());
        }
        entries => entries.with_context(what)?,
    };
    if let Some(entry) = entries.next_entry().await.with_context(what)? {
        let name = entry.file_name();
        bail!(
            "{} is not empty, {} is in it: name an empty directory, or one that does not exist",
            directory.display(),
            name.display()
        );
    }
    Ok(())
}

/// Creates a file that only its owner may read, because the strings may be secret.
pub(super) async fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await
}

/// Writes the rest of a file, and syncs it. tokio writes in the background, and only the flush reports that the last
/// write has failed.
pub(super) async fn finish(file: &mut File) -> std::io::Result<()> {
    file.flush().await?;
    file.sync_all().await
}

/// Syncs a directory, so that the names in it survive a loss of power.
async fn sync(directory: &Path) -> std::io::Result<()> {
    File::open(directory).await?.sync_all().await
}

/// The checksum of the manifest. Its fields are in an order of their own, so that neither their order
/// in the file nor the spaces between them matter.
fn digest(backup: &Value) -> String {
    hexadecimal(&Sha256::new().chain_update(backup.to_string()))
}

/// The digest of all bytes so far, in hexadecimal digits.
pub(super) fn hexadecimal(hash: &Sha256) -> String {
    format!("{:x}", hash.clone().finalize())
}
