//! The daemon's end: who may hand files over, and what was handed over.
//!
//! ```text
//! Session call ─▶ Hands::open ─▶ Key (as long as the session) ──────────┐
//! connection ─▶ Hands::join: token known, same user ─▶ waiting in it ───┴▶ Key::line ─▶ Line::take
//! ```
use super::{GREETING_BYTES, MAGIC, PATIENCE, TOKEN_BYTES, TRANSFER_BYTES, VERSION_FIELD, is_plain};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Lines of one session that wait for their transfer: one for each directory of a build.
const MOST_WAITING: usize = 64;

/// Why a descriptor was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The client said so, but did not hand anything over.
    #[error("the client says that it handed a file over, but did not")]
    Nothing,
    /// What was handed over is no file to be read.
    #[error("the client handed over what is no plain file open for reading")]
    Kind,
    /// The connection broke.
    #[error("take a file from the client: {0}")]
    Line(#[from] io::Error),
}

/// All sessions whose clients may hand files over.
#[derive(Debug, Default)]
pub struct Hands {
    sessions: Mutex<HashMap<String, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    user: u32,
    lines: HashMap<String, UnixStream>,
}

/// One session's right to it; ends when it is dropped.
#[derive(Debug)]
pub struct Key {
    hands: Arc<Hands>,
    token: String,
}

impl Hands {
    /// Lets the client of a session, who is this user, hand files over; none if there are no random numbers.
    pub fn open(self: &Arc<Hands>, user: u32) -> Option<Key> {
        let mut random = [0; TOKEN_BYTES / 2];
        SystemRandom::new().fill(&mut random).ok()?;
        let token = format!("{:032x}", u128::from_be_bytes(random));
        let waiting = Waiting {
            user,
            lines: HashMap::new(),
        };
        self.sessions.lock().insert(token.clone(), waiting);
        Some(Key {
            hands: self.clone(),
            token,
        })
    }

    /// Takes a connection of this user that begins with [`MAGIC`]. Blocks for a short while.
    ///
    /// # Errors
    /// It is nobody's who may; then it is closed.
    pub fn join(&self, mut stream: UnixStream, user: u32) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting)?;
        let (magic, rest) = greeting.split_at(MAGIC.len());
        let (version, rest) = rest.split_at(VERSION_FIELD.len());
        let (token, transfer) = rest.split_at(TOKEN_BYTES);
        let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned());
        if magic != MAGIC || version != VERSION_FIELD {
            return Err(refused("an unknown greeting"));
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ours = stream.try_clone()?;
        {
            let mut sessions = self.sessions.lock();
            let waiting = sessions
                .get_mut(&text(token))
                .filter(|waiting| waiting.user == user)
                .ok_or_else(|| refused("no session of this user has this token"))?;
            if waiting.lines.len() >= MOST_WAITING {
                return Err(refused("too many lines of one session wait"));
            }
            waiting.lines.insert(text(transfer), ours);
        }
        stream.write_all(&[0])
    }
}

impl Key {
    /// What the client must show.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The line the client made for a transfer.
    pub fn line(&self, transfer: &[u8]) -> Option<Line> {
        let transfer = std::str::from_utf8(transfer)
            .ok()
            .filter(|transfer| transfer.len() == TRANSFER_BYTES)?;
        let mut sessions = self.hands.sessions.lock();
        let stream = sessions.get_mut(&self.token)?.lines.remove(transfer)?;
        Some(Line(stream))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.hands.sessions.lock().remove(&self.token);
    }
}

/// The line of one transfer.
#[derive(Debug)]
pub struct Line(UnixStream);

impl Line {
    /// The next descriptor; it was handed over before the packet that says so, so it is there.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn take(&mut self) -> Result<File, TakeError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        received.map_err(io::Error::from)?;
        let handed = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let file = File::from(handed.ok_or(TakeError::Nothing)?);
        let is_file = fstat(&file).is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file());
        let flags = fcntl_getfl(&file).map_err(io::Error::from)?;
        let is_open = !flags.contains(OFlags::PATH) && (flags & OFlags::RWMODE) != OFlags::WRONLY;
        match is_file && is_open && is_plain(&file) {
            true => Ok(file),
            false => Err(TakeError::Kind),
        }
    }

    /// Says that the last one is done with. A client that is gone needs not hear it.
    pub fn done(&mut self) {
        let _ = self.0.write_all(&[0]);
    }
}
