//! Receives a directory: what is unchanged comes from an older copy, the rest over the wire.
//!
//! ```text
//! STAT ─▶ checked (order, parents) ─┬─ same as in the older copy: linked from there
//!                                   └─ else: made; a file is asked for (REQ) and written as its DATA comes
//! end of STATs, all files whole ─▶ links, times of directories ─▶ FIN
//! ```
//!
//! Nothing is made while everything is as it was: then the older copy itself is the answer. The directory is private to
//! the receiver until it is whole, so files are written in place. Blocking; runs on a thread of its own.
use super::handed::Handed;
use super::listed::Listed;
use super::packet;
use super::stat::{StatError, entry_of};
use crate::hand::{HANDED, Key, TakeError};
use crate::wire::fsutil::{Packet, Stat, packet::PacketType};
use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Entry, Kind, PatternSet, Root, RootPath};

/// Files a sender may send at the same time; BuildKit's clients send four.
const MAX_OPEN_FILES: usize = 64;
/// A message of the index; longer is damage.
const MAX_STAT_BYTES: usize = 8 << 20;

/// What a stranger may make us keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of one directory.
    pub entries: usize,
    /// Bytes of file contents.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 4_000_000,
            bytes: 1 << 40,
        }
    }
}

/// An older copy of the same directory.
#[derive(Clone, Debug)]
pub struct Previous {
    /// Its files.
    pub tree: PathBuf,
    /// What was said of each entry.
    pub index: PathBuf,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as in the older copy; nothing was made.
    Unchanged,
    /// A new directory was made.
    Made {
        /// Files that came over the wire.
        files: u64,
        /// Bytes of their contents.
        bytes: u64,
        /// Bytes of all files of the directory.
        total: u64,
    },
}

/// Why a directory could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// An entry is refused.
    #[error(transparent)]
    Stat(#[from] StatError),
    /// Entries must come in order, each after the directory it lies in.
    #[error("{path:?} came {why}")]
    Order {
        /// Which entry.
        path: String,
        /// What is wrong with its place.
        why: &'static str,
    },
    /// A limit is passed.
    #[error("the directory has more than {limit} {what}")]
    Limit {
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// Data nobody asked for, an unknown packet, or files mixed beyond reason.
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),
    /// The client gave up.
    #[error("{0}")]
    Peer(String),
    /// The stream ended too early.
    #[error("the client went away in the middle of the transfer")]
    Ended,
    /// A file that was said to be handed over was not.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// A file that was handed over cannot be read, or not be written.
    #[error("copy a file of the client: {source}")]
    Handed {
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// A file cannot be written or read.
    #[error("{doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Where packets come from and go to.
pub trait Incoming {
    /// The next packet, waiting for it; `None` at the end of the stream.
    fn next(&mut self) -> Option<Result<Packet, String>>;
    /// Sends one; false if nobody listens any more.
    fn send(&mut self, packet: Packet) -> bool;
    /// Whether nothing that comes is wanted any more.
    fn is_over(&self) -> bool {
        false
    }
}

/// One transfer.
pub struct Receiver<'a> {
    /// Where the new directory is to be; made when it is needed.
    pub tree: &'a Path,
    /// Where what was said of each entry is written.
    pub index: &'a Path,
    /// What may be linked from.
    pub previous: Option<&'a Previous>,
    /// Ask for every file again, even where nothing seems changed (`local.differ=none`).
    pub asks_for_all: bool,
    /// Only the list of entries is wanted, and what these match; none to want everything.
    pub listed: Option<PatternSet>,
    /// By what right the sender may hand files over; none if it may not.
    pub hand: Option<Arc<Key>>,
    /// Limits.
    pub limits: Limits,
    /// Told of every packet's size as it came.
    pub meter: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Receiver<'_> {
    /// Receives.
    ///
    /// # Errors
    /// [`ReceiveError`]; what was made is left for the caller to remove.
    pub fn run(&self, wire: &mut dyn Incoming) -> Result<Outcome, ReceiveError> {
        let mut work = Work {
            asked: self,
            made: None,
            older: OlderIndex::open(self.previous)?,
            next_older: None,
            same: Vec::new(),
            stack: Vec::new(),
            last: None,
            count: 0,
            files: HashMap::new(),
            open_files: 0,
            late: Vec::new(),
            is_listed: false,
            received: (0, 0),
            announced: 0,
            handed: Handed::new(self.hand.clone()),
            listed: match &self.listed {
                Some(exceptions) => Some(Listed::begin(exceptions, self.tree)?),
                None => None,
            },
        };
        work.next_older = work.older.next()?;
        work.run(wire)
    }
}

/// What was said of the older copy's entries, in order.
struct OlderIndex(Option<io::BufReader<File>>);

impl OlderIndex {
    fn open(previous: Option<&Previous>) -> Result<OlderIndex, ReceiveError> {
        let Some(previous) = previous else {
            return Ok(OlderIndex(None));
        };
        let file =
            File::open(&previous.index).map_err(|source| file_error("open", &previous.index, source))?;
        Ok(OlderIndex(Some(io::BufReader::with_capacity(64 << 10, file))))
    }

    fn next(&mut self) -> Result<Option<Stat>, ReceiveError> {
        let Some(reader) = &mut self.0 else {
            return Ok(None);
        };
        let mut length = [0; 4];
        match reader.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => return Err(file_error("read", Path::new("index"), source)),
        }
        let length = u32::from_le_bytes(length) as usize;
        let damaged = || file_error("read", Path::new("index"), io::ErrorKind::InvalidData.into());
        if length > MAX_STAT_BYTES {
            return Err(damaged());
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(|_| damaged())?;
        Stat::decode(&bytes[..]).map(Some).map_err(|_| damaged())
    }
}

fn file_error(doing: &'static str, path: &Path, source: io::Error) -> ReceiveError {
    ReceiveError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}

struct Work<'a> {
    asked: &'a Receiver<'a>,
    made: Option<Made>,
    older: OlderIndex,
    next_older: Option<Stat>,
    /// Entries so far, while all are as in the older copy.
    same: Vec<Stat>,
    /// The directories that enclose the last entry.
    stack: Vec<RootPath>,
    last: Option<RootPath>,
    count: u32,
    /// Files asked for that are not whole.
    files: HashMap<u32, Asked>,
    /// How many of them are open.
    open_files: usize,
    /// Done when all files are whole: hard links, and the attributes of directories.
    late: Vec<Entry>,
    is_listed: bool,
    /// Files and bytes that came.
    received: (u64, u64),
    /// Bytes of contents the entries promise.
    announced: u64,
    handed: Handed,
    listed: Option<Listed<'a>>,
}

/// The new directory.
struct Made {
    root: Root,
    index: io::BufWriter<File>,
    older: Option<Root>,
}

struct Asked {
    entry: Entry,
    file: Option<File>,
}

/// A file may have grown since it was listed, but not without end.
fn check_bytes(limits: &Limits, bytes: u64) -> Result<(), ReceiveError> {
    match bytes > limits.bytes {
        true => Err(ReceiveError::Limit {
            limit: limits.bytes,
            what: "bytes",
        }),
        false => Ok(()),
    }
}

impl Work<'_> {
    fn run(&mut self, wire: &mut dyn Incoming) -> Result<Outcome, ReceiveError> {
        let mut is_fin_sent = false;
        while let Some(next) = wire.next() {
            let next = match next {
                // Some senders reset the stream instead of ending it; everything is there.
                Err(_) if is_fin_sent => break,
                next => next.map_err(ReceiveError::Peer)?,
            };
            (self.asked.meter)(next.encoded_len() as u64);
            match PacketType::try_from(next.r#type) {
                Ok(PacketType::PacketStat) => match next.stat {
                    Some(stat) if !stat.path.is_empty() || stat.mode != 0 => self.entry(stat, wire)?,
                    _ => self.end_of_list()?,
                },
                Ok(PacketType::PacketData) => self.data(next.id, &next.data)?,
                Ok(PacketType::PacketErr) => {
                    return Err(ReceiveError::Peer(
                        String::from_utf8_lossy(&next.data).into_owned(),
                    ));
                }
                Ok(PacketType::PacketFin) if is_fin_sent => return self.outcome(),
                Err(_) if next.r#type == HANDED => self.handed(next.id, &next.data, wire)?,
                _ => return Err(ReceiveError::Protocol("an unexpected packet")),
            }
            if self.is_listed && self.files.is_empty() && !is_fin_sent {
                self.finish()?;
                is_fin_sent = true;
                if !wire.send(packet(PacketType::PacketFin, 0, Bytes::new())) {
                    return Err(ReceiveError::Ended);
                }
            }
        }
        // Some clients end the stream instead of answering FIN.
        if is_fin_sent {
            self.outcome()
        } else {
            Err(ReceiveError::Ended)
        }
    }

    fn outcome(&self) -> Result<Outcome, ReceiveError> {
        Ok(match self.made {
            None => Outcome::Unchanged,
            Some(_) => Outcome::Made {
                files: self.received.0,
                bytes: self.received.1,
                total: self.announced.max(self.received.1),
            },
        })
    }

    fn entry(&mut self, stat: Stat, wire: &mut dyn Incoming) -> Result<(), ReceiveError> {
        if self.is_listed {
            return Err(ReceiveError::Protocol("an entry after the end of the list"));
        }
        let entry = entry_of(&stat)?;
        self.place(&entry)?;
        let id = self.count;
        self.count += 1;
        if self.count as usize > self.asked.limits.entries {
            return Err(ReceiveError::Limit {
                limit: self.asked.limits.entries as u64,
                what: "entries",
            });
        }
        let Some(listed) = &mut self.listed else {
            return self.wanted(stat, entry, id, wire);
        };
        for (stat, entry) in listed.note(stat, entry)? {
            self.wanted(stat, entry, id, wire)?;
        }
        Ok(())
    }

    /// An entry that is to be there.
    fn wanted(
        &mut self,
        stat: Stat,
        entry: Entry,
        id: u32,
        wire: &mut dyn Incoming,
    ) -> Result<(), ReceiveError> {
        self.announced = self.announced.saturating_add(entry.size);
        self.check_bytes(self.announced)?;
        let is_same = self.is_as_before(&stat, &entry)?;
        if self.made.is_none() {
            if is_same && !self.asked.asks_for_all {
                self.same.push(stat);
                return Ok(());
            }
            self.begin()?;
        }
        self.make(&stat, entry, is_same && !self.asked.asks_for_all, id, wire)
    }

    /// In order, and inside a directory that came before.
    fn place(&mut self, entry: &Entry) -> Result<(), ReceiveError> {
        let wrong = |why| ReceiveError::Order {
            path: entry.path.display().to_string(),
            why,
        };
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(wrong("out of order"));
        }
        while self
            .stack
            .last()
            .is_some_and(|folder| !entry.path.starts_with(folder))
        {
            self.stack.pop();
        }
        let parent = entry.path.parent().unwrap_or_default();
        let is_inside = match self.stack.last() {
            Some(folder) => *folder == parent,
            None => parent.is_root(),
        };
        if !is_inside {
            return Err(wrong("before the directory it lies in"));
        }
        if entry.kind == Kind::Dir {
            self.stack.push(entry.path.clone());
        }
        self.last = Some(entry.path.clone());
        Ok(())
    }

    /// Whether the older copy has the very same entry.
    fn is_as_before(&mut self, stat: &Stat, entry: &Entry) -> Result<bool, ReceiveError> {
        while let Some(older) = &self.next_older {
            match RootPath::compare_bytes(older.path.as_bytes(), entry.path.as_bytes()) {
                std::cmp::Ordering::Less => {
                    // It is gone: from here on the directories differ.
                    if self.made.is_none() {
                        self.begin()?;
                    }
                    self.next_older = self.older.next()?;
                }
                std::cmp::Ordering::Equal => {
                    let mut older = older.clone();
                    if entry.kind == Kind::Dir {
                        // A directory's time changes with its entries; its size means nothing.
                        (older.size, older.mod_time) = (stat.size, stat.mod_time);
                    }
                    let is_same = older == *stat;
                    self.next_older = self.older.next()?;
                    return Ok(is_same);
                }
                std::cmp::Ordering::Greater => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Makes the new directory, with all that was the same so far.
    fn begin(&mut self) -> Result<(), ReceiveError> {
        std::fs::create_dir_all(self.asked.tree)
            .map_err(|source| file_error("make", self.asked.tree, source))?;
        let index =
            File::create(self.asked.index).map_err(|source| file_error("make", self.asked.index, source))?;
        let older = self
            .asked
            .previous
            .map(|previous| Root::open(&previous.tree))
            .transpose()?;
        self.made = Some(Made {
            root: Root::open(self.asked.tree)?,
            index: io::BufWriter::new(index),
            older,
        });
        for stat in std::mem::take(&mut self.same) {
            let entry = entry_of(&stat)?;
            self.make(&stat, entry, true, 0, &mut Deaf)?;
        }
        Ok(())
    }

    fn make(
        &mut self,
        stat: &Stat,
        entry: Entry,
        is_same: bool,
        id: u32,
        wire: &mut dyn Incoming,
    ) -> Result<(), ReceiveError> {
        let made = self.made.as_mut().expect("the directory was begun");
        let bytes = stat.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        made.index
            .write_all(&length)
            .and_then(|()| made.index.write_all(&bytes))
            .map_err(|source| file_error("write", self.asked.index, source))?;
        match entry.kind {
            Kind::Dir => {
                made.root.create_dir(&entry.path, 0o700)?;
                self.late.push(entry);
            }
            Kind::Symlink => {
                made.root
                    .symlink(entry.link.as_deref().unwrap_or_default(), &entry.path)?;
                made.root.set_mtime(&entry.path, entry.mtime)?;
            }
            Kind::HardLink => self.late.push(entry),
            Kind::Char | Kind::Block | Kind::Fifo => {
                made.root.mknod(&entry.path, entry.kind, entry.mode, entry.rdev)?;
                made.attributes(&entry)?;
            }
            Kind::File => {
                if is_same && made.take_older(&entry) {
                    return Ok(());
                }
                // A copy that failed half way must not be in the way of the file itself.
                let _ = made.root.remove_file(&entry.path);
                self.files.insert(id, Asked { entry, file: None });
                if !wire.send(packet(PacketType::PacketReq, id, Bytes::new())) {
                    return Err(ReceiveError::Ended);
                }
            }
        }
        Ok(())
    }

    /// A file that was asked for, opened for writing.
    fn file(&mut self, id: u32) -> Result<&mut Asked, ReceiveError> {
        let (Some(asked), Some(made)) = (self.files.get_mut(&id), self.made.as_ref()) else {
            return Err(ReceiveError::Protocol("data of a file nobody asked for"));
        };
        if asked.file.is_none() {
            if self.open_files >= MAX_OPEN_FILES {
                return Err(ReceiveError::Protocol("too many files at the same time"));
            }
            asked.file = Some(made.root.create_file(&asked.entry.path, 0o600)?);
            self.open_files += 1;
        }
        Ok(asked)
    }

    fn whole(&mut self, id: u32) -> Result<(), ReceiveError> {
        if let (Some(asked), Some(made)) = (self.files.remove(&id), self.made.as_ref()) {
            drop(asked.file);
            self.open_files -= 1;
            made.attributes(&asked.entry)?;
            self.received.0 += 1;
        }
        Ok(())
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), ReceiveError> {
        self.file(id)?;
        if data.is_empty() {
            return self.whole(id);
        }
        self.received.1 += data.len() as u64;
        self.check_bytes(self.received.1)?;
        let asked = self.file(id)?;
        let file = asked.file.as_mut().expect("it was opened");
        file.write_all(data)
            .map_err(|source| file_error("write", asked.entry.path.as_path(), source))
    }

    /// A whole file, as a descriptor.
    fn handed(&mut self, id: u32, transfer: &[u8], wire: &dyn Incoming) -> Result<(), ReceiveError> {
        let asked = self.file(id)?;
        let file = asked.file.take().expect("it was opened");
        if file.metadata().is_ok_and(|data| data.len() > 0) {
            return Err(ReceiveError::Protocol("a file both sent and handed over"));
        }
        let mut received = self.received.1;
        let asked = self.asked;
        let mut handed = std::mem::replace(&mut self.handed, Handed::new(None));
        let mut tick = |bytes: u64| {
            received += bytes;
            (asked.meter)(bytes);
            check_bytes(&asked.limits, received)?;
            match wire.is_over() {
                true => Err(ReceiveError::Ended),
                false => Ok(()),
            }
        };
        handed.copy(transfer, &file, &mut tick)?;
        (self.handed, self.received.1) = (handed, received);
        self.whole(id)
    }

    fn check_bytes(&self, bytes: u64) -> Result<(), ReceiveError> {
        check_bytes(&self.asked.limits, bytes)
    }

    fn end_of_list(&mut self) -> Result<(), ReceiveError> {
        if std::mem::replace(&mut self.is_listed, true) {
            return Err(ReceiveError::Protocol("the list ended twice"));
        }
        let is_list_same = match &mut self.listed {
            Some(listed) => {
                let older = self.asked.previous.map(|older| older.tree.as_path());
                listed.is_as_before(older)?
            }
            None => true,
        };
        let is_all_there = self.next_older.is_none() && self.asked.previous.is_some() && is_list_same;
        if self.made.is_none() && !is_all_there {
            self.begin()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ReceiveError> {
        let Some(made) = &mut self.made else {
            return Ok(());
        };
        for entry in self.late.iter().filter(|entry| entry.kind == Kind::HardLink) {
            let target =
                RootPath::clean(entry.link.as_deref().unwrap_or_default()).map_err(StatError::from)?;
            made.root.hard_link(&target, &entry.path)?;
        }
        // From the inside out, as making an entry changes the time of its directory.
        for entry in self.late.iter().rev().filter(|entry| entry.kind == Kind::Dir) {
            made.attributes(entry)?;
        }
        if let Some(listed) = &self.listed {
            listed.place(self.asked.tree)?;
        }
        made.index
            .flush()
            .map_err(|source| file_error("write", self.asked.index, source))
    }
}

impl Made {
    fn attributes(&self, entry: &Entry) -> Result<(), tree::Error> {
        for (name, value) in &entry.xattrs {
            // Not every attribute can be set by everybody; the copy is for reading.
            let _ = self.root.set_xattr(&entry.path, name, value);
        }
        self.root.set_mode(&entry.path, entry.mode)?;
        self.root.set_mtime(&entry.path, entry.mtime)
    }

    /// Takes a file from the older copy, by a further name or by a copy of it; false if that cannot be done.
    fn take_older(&self, entry: &Entry) -> bool {
        let Some(older) = &self.older else {
            return false;
        };
        if self.root.link_from(older, &entry.path).is_ok() {
            return true;
        }
        let copied = older.open_file(&entry.path).ok().and_then(|(mut from, _)| {
            let mut to = self.root.create_file(&entry.path, 0o600).ok()?;
            io::copy(&mut from, &mut to).ok()?;
            self.attributes(entry).ok()
        });
        copied.is_some()
    }
}

/// Nobody is asked while what was the same is made.
struct Deaf;

impl Incoming for Deaf {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        None
    }

    fn send(&mut self, _: Packet) -> bool {
        false
    }
}
