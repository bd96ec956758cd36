//! The events of one build, on disk while they come: one writer, any number of readers, early or late.
//!
//! ```text
//! append(frame) ─▶ file: (u32 little-endian length, frame)* ─▶ LogReader::next, from the first frame on
//! ```
//!
//! Frames are `StatusResponse` messages of the control API, so a finished log is served and exported as it lies
//! there (media type [`MEDIA_TYPE`]). Memory: one frame per reader. A reader that is slow delays nobody.
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// What a log is called on the wire.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.status.v0";
/// No log grows beyond this; what comes later is dropped, and counted.
pub const MAX_LOG_BYTES: u64 = 256 << 20;
/// No frame is larger than this; a reader refuses a longer one as damage.
const MAX_FRAME_BYTES: u32 = 32 << 20;

/// A log being written.
#[derive(Debug)]
pub struct EventLog {
    file: Arc<File>,
    /// Bytes written, and whether that is all.
    state: watch::Sender<(u64, bool)>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    end: u64,
    dropped: u64,
    is_failed: bool,
}

impl EventLog {
    /// Begins a log in a new file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> io::Result<EventLog> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(EventLog {
            file: Arc::new(file),
            state: watch::Sender::new((0, false)),
            writer: Mutex::default(),
        })
    }

    /// Adds a frame. A full disk or a log at its limit drops it: a build does not fail for its log.
    pub fn append(&self, frame: &[u8]) {
        let mut writer = self.writer.lock();
        let Some(length) = u32::try_from(frame.len())
            .ok()
            .filter(|length| *length <= MAX_FRAME_BYTES)
        else {
            writer.dropped += 1;
            return;
        };
        let end = writer.end + 4 + u64::from(length);
        if writer.is_failed || end > MAX_LOG_BYTES {
            writer.dropped += 1;
            return;
        }
        let mut bytes = Vec::with_capacity(frame.len() + 4);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(frame);
        if let Err(error) = self.file.write_all_at(&bytes, writer.end) {
            tracing::warn!(%error, "the log of a build ends early");
            writer.is_failed = true;
            writer.dropped += 1;
            return;
        }
        writer.end = end;
        self.state.send_replace((end, false));
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.state.send_modify(|state| state.1 = true);
    }

    /// Frames that were not kept.
    pub fn dropped(&self) -> u64 {
        self.writer.lock().dropped
    }

    /// Reads from the first frame on.
    pub fn reader(&self) -> LogReader {
        LogReader {
            file: self.file.clone(),
            at: 0,
            state: self.state.subscribe(),
        }
    }
}

/// Reads a log, following it while it grows.
#[derive(Debug)]
pub struct LogReader {
    file: Arc<File>,
    at: u64,
    state: watch::Receiver<(u64, bool)>,
}

impl LogReader {
    /// Reads a finished log.
    ///
    /// # Errors
    /// The file's size cannot be had.
    pub fn of_file(file: File) -> io::Result<LogReader> {
        let size = file.metadata()?.len();
        Ok(LogReader {
            file: Arc::new(file),
            at: 0,
            state: watch::Sender::new((size, true)).subscribe(),
        })
    }

    /// The next frame, waiting for it if the build still runs; `None` after the last.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let (end, is_closed) = *self.state.borrow_and_update();
            if self.at < end {
                return self.read(end).map(Some);
            }
            if is_closed || self.state.changed().await.is_err() {
                // The writer may have added frames just before it went.
                let (end, _) = *self.state.borrow();
                if self.at >= end {
                    return Ok(None);
                }
            }
        }
    }

    /// The next frame of what is there; `None` after the last, even if the build still runs.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn next_written(&mut self) -> io::Result<Option<Vec<u8>>> {
        let (end, _) = *self.state.borrow();
        match self.at < end {
            true => self.read(end).map(Some),
            false => Ok(None),
        }
    }

    fn read(&mut self, end: u64) -> io::Result<Vec<u8>> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the log of the build is damaged");
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, self.at)?;
        let length = u32::from_le_bytes(length);
        let next = self.at + 4 + u64::from(length);
        if length > MAX_FRAME_BYTES || next > end {
            return Err(damaged());
        }
        let mut frame = vec![0; length as usize];
        self.file.read_exact_at(&mut frame, self.at + 4)?;
        self.at = next;
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reader: LogReader) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await.expect("a whole log") {
            frames.push(frame);
        }
        frames
    }

    #[tokio::test]
    async fn early_and_late_readers_see_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = EventLog::create(&path).expect("a new file");
        let early = tokio::spawn(all(log.reader()));
        for frame in [&b"one"[..], b"", b"three"] {
            log.append(frame);
            tokio::task::yield_now().await;
        }
        log.close();
        let expected = vec![b"one".to_vec(), Vec::new(), b"three".to_vec()];
        assert_eq!(early.await.expect("no panic"), expected);
        assert_eq!(all(log.reader()).await, expected);
        let file = File::open(&path).expect("it is there");
        assert_eq!(
            all(LogReader::of_file(file).expect("it has a size")).await,
            expected
        );
        assert_eq!(log.dropped(), 0);
    }

    #[tokio::test]
    async fn a_writer_that_goes_away_ends_the_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = EventLog::create(&folder.path().join("log")).expect("a new file");
        log.append(b"only");
        let reader = log.reader();
        drop(log);
        assert_eq!(all(reader).await, [b"only".to_vec()]);
    }

    #[tokio::test]
    async fn damage_is_an_error_not_a_huge_allocation() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in [
            ("long", &b"\xff\xff\xff\xffabc"[..]),
            ("short", b"\x05\0\0\0ab"),
            ("cut", b"\x05\0"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let mut reader = LogReader::of_file(File::open(&path).expect("there")).expect("a size");
            assert!(reader.next().await.is_err(), "{name}");
        }
    }
}
