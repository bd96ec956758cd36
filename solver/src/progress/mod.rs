//! What a build shows of itself while it runs.
//!
//! ```text
//! solver: started, completed ─┐
//! op: status, log, warning ───┴▶ Feed (one per vertex) ─▶ Stream (one per job) ─▶ EventReader
//! ```
//!
//! 1. `event` is what is shown: [`Event`].
//! 2. `feed` keeps what a vertex has shown so far, so that a job that joins late sees all of it, and
//!    hands each event to the jobs that want the vertex.
//! 3. `limit` holds a vertex's output to a size and a rate.
//! 4. `stream` is one job's queue: it adds what follows from the graph (inputs that never had to start
//!    are shown as cached; what is open at the end is shown as cancelled).
//! 5. `sink` is what an op reports to, and [`Step`] what a caller outside the graph reports to.
//!
//! The queue of a job is bounded: output by the limit per vertex, status lines because a newer one
//! replaces an older one that was not read yet. Nothing waits for a slow reader. Clocks are the caller's.

mod event;
mod limit;
mod stream;
mod feed;
mod sink;

pub use event::{
    Event, LogEvent, OutputStream, Status, StatusEvent, VertexEvent, VertexInfo, Warning, WarningEvent,
};
pub(crate) use feed::Feed;
pub use limit::LogLimits;
pub use sink::{Activity, Clock, Sink, Step};
pub(crate) use stream::Stream;
pub use stream::{EventReader, EventWriter};
