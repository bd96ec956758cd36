//! Packets between a stream of gRPC messages and a thread that blocks, with a bound on what waits between them.
//!
//! ```text
//! stream ─▶ (task, at most 4 MiB ahead) ─▶ Incoming::next, on a thread ─▶ Incoming::send ─▶ bounded queue ─▶ stream
//! ```
use super::Incoming;
use crate::wire::fsutil::Packet;
use futures_util::{Stream, StreamExt};
use prost::Message;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Packets between the wire and a thread that blocks.
pub struct Wire {
    incoming: mpsc::UnboundedReceiver<Result<Packet, String>>,
    bytes: Arc<tokio::sync::Semaphore>,
    to_peer: Box<dyn FnMut(Packet) -> bool + Send>,
    ended: CancellationToken,
}

/// Bytes of packets that may wait for the thread.
const WAITING_BYTES: usize = 4 << 20;

impl Wire {
    /// Reads a stream ahead, once it is there (a peer may not answer before it was sent something), until `ended` is
    /// cancelled; `to_peer` sends, blocking, and says whether anybody listens.
    pub fn new<O, S, F>(opening: O, to_peer: F, ended: CancellationToken) -> Wire
    where
        O: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<Packet, Status>> + Send + Unpin + 'static,
        F: FnMut(Packet) -> bool + Send + 'static,
    {
        let (queue, incoming) = mpsc::unbounded_channel();
        // Small packets (what a receiver asks for) must always get through, or both ends would wait for each other; data
        // waits until there is room.
        let bytes = Arc::new(tokio::sync::Semaphore::new(WAITING_BYTES));
        let (room, over) = (bytes.clone(), ended.clone());
        tokio::spawn(async move {
            let opened = tokio::select! {
                biased;
                () = ended.cancelled() => return,
                () = queue.closed() => return,
                opened = opening => opened,
            };
            let mut stream = match opened {
                Ok(stream) => stream,
                Err(status) => {
                    let _ = queue.send(Err(status.message().to_owned()));
                    return;
                }
            };
            loop {
                let next = tokio::select! {
                    biased;
                    () = ended.cancelled() => break,
                    () = queue.closed() => break,
                    next = stream.next() => next,
                };
                let packet = match next {
                    Some(Ok(packet)) => packet,
                    None => break,
                    Some(Err(status)) => {
                        let _ = queue.send(Err(status.message().to_owned()));
                        break;
                    }
                };
                let cost = cost(&packet);
                tokio::select! {
                    () = ended.cancelled() => break,
                    taken = room.acquire_many(cost) => match taken {
                        Ok(permit) => permit.forget(),
                        Err(_) => break,
                    },
                }
                if queue.send(Ok(packet)).is_err() {
                    break;
                }
            }
        });
        Wire {
            incoming,
            bytes,
            to_peer: Box::new(to_peer),
            ended: over,
        }
    }
}

/// What a packet weighs while it waits. What is asked for weighs little: a receiver may ask for every file of a large
/// directory before the first is sent.
fn cost(packet: &Packet) -> u32 {
    if packet.stat.is_none() && packet.data.is_empty() {
        return 8;
    }
    u32::try_from((packet.encoded_len() + 64).min(WAITING_BYTES)).unwrap_or(u32::MAX)
}

impl Incoming for Wire {
    fn next(&mut self) -> Option<Result<Packet, String>> {
        let next = self.incoming.blocking_recv()?;
        if let Ok(packet) = &next {
            self.bytes.add_permits(cost(packet) as usize);
        }
        Some(next)
    }

    fn send(&mut self, packet: Packet) -> bool {
        (self.to_peer)(packet)
    }

    fn is_over(&self) -> bool {
        self.ended.is_cancelled() || self.incoming.is_closed()
    }
}
