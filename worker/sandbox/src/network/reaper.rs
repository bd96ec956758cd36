//! Removes the interfaces of leases that are over, one after the other, on a thread of its own.
//!
//! It ends when nobody can send to it any more. What it has not done when the process ends the kernel does, since the
//! namespaces go with the process.

use std::{
    fs::File,
    io,
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
};

use super::{link, netlink::Netlink};

/// An interface that is to go.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Its name.
    pub(super) outer: String,
    /// The lock on its address, freed after the interface is gone.
    pub(super) _address: File,
}

enum Message {
    Remove(Leaving),
    Settle(SyncSender<()>),
}

/// Where interfaces are sent to be removed.
#[derive(Debug, Clone)]
pub(super) struct Reaper(Sender<Message>);

impl Reaper {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Reaper> {
        let (sender, messages) = channel();
        let mut host = Netlink::route()?;
        std::thread::Builder::new()
            .name("network-reaper".into())
            .spawn(move || work(&messages, &mut host))?;
        Ok(Reaper(sender))
    }

    /// Has an interface removed.
    pub(super) fn remove(&self, leaving: Leaving) {
        // The thread ends only after the last sender; were it gone, the kernel removes the interface all the same.
        drop(self.0.send(Message::Remove(leaving)));
    }

    /// Waits until all that was sent before is removed.
    pub(super) fn settle(&self) {
        let (done, waiting) = sync_channel(1);
        let asked = self.0.send(Message::Settle(done)).is_ok();
        let _answered = asked && waiting.recv().is_ok();
    }
}

fn work(messages: &Receiver<Message>, host: &mut Netlink) {
    for message in messages {
        match message {
            // Gone already if its namespace went first.
            Message::Remove(leaving) => drop(link::delete(host, &leaving.outer)),
            Message::Settle(done) => drop(done.send(())),
        }
    }
}
