//! The client's end: connects when the first large file is wanted, and gives descriptors.
use super::{
    GREETING_BYTES, LEAST_BYTES, MAGIC, MOST_AHEAD, PATIENCE, TOKEN_BYTES, TRANSFER_BYTES, VERSION_FIELD,
    is_plain,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A daemon that takes descriptors.
#[derive(Clone, Debug)]
pub struct Offer {
    socket: PathBuf,
    token: String,
}

impl Offer {
    /// The daemon that listens at `socket` and answered with `token`; none if that is no token.
    pub fn new(socket: PathBuf, token: &str) -> Option<Offer> {
        let is_token = token.len() == TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_token.then(|| Offer {
            socket,
            token: token.to_owned(),
        })
    }

    fn connect(&self) -> io::Result<(UnixStream, String)> {
        let mut random = [0; TRANSFER_BYTES / 2];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("no random numbers"))?;
        let transfer = format!("{:016x}", u64::from_be_bytes(random));
        let mut greeting = Vec::with_capacity(GREETING_BYTES);
        greeting.extend_from_slice(MAGIC);
        greeting.extend_from_slice(VERSION_FIELD);
        greeting.extend_from_slice(self.token.as_bytes());
        greeting.extend_from_slice(transfer.as_bytes());
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&greeting)?;
        stream.read_exact(&mut [0])?;
        // From here on the daemon answers when it has copied a file, however large; it closes when it gives up.
        stream.set_read_timeout(None)?;
        Ok((stream, transfer))
    }
}

/// The line of one transfer, made when it is first used.
pub struct Giver<'a> {
    offer: Option<&'a Offer>,
    line: Option<(UnixStream, String)>,
    ahead: usize,
}

impl<'a> Giver<'a> {
    /// For a daemon that takes descriptors, if it does.
    pub fn new(offer: Option<&'a Offer>) -> Giver<'a> {
        Giver {
            offer,
            line: None,
            ahead: 0,
        }
    }

    /// Gives a file of `size` bytes; the transfer's name if the daemon has it, and none if its bytes must be sent.
    pub(crate) fn give(&mut self, file: &File, size: u64) -> Option<String> {
        if size < LEAST_BYTES || !is_plain(file) {
            return None;
        }
        let offer = self.offer?;
        match self.hand(offer, file) {
            Ok(transfer) => Some(transfer),
            Err(error) => {
                tracing::debug!(%error, "no more files are handed over");
                (self.offer, self.line) = (None, None);
                None
            }
        }
    }

    fn hand(&mut self, offer: &Offer, file: &File) -> io::Result<String> {
        if self.line.is_none() {
            self.line = Some(offer.connect()?);
        }
        let Some((stream, transfer)) = &mut self.line else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if self.ahead == MOST_AHEAD {
            stream.read_exact(&mut [0])?;
            self.ahead -= 1;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sendmsg(&*stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        self.ahead += 1;
        Ok(transfer.clone())
    }
}
