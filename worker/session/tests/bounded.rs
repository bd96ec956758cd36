//! What one end may send before the other has taken it is bounded, whatever the size of what is sent: by counters, at every
//! step of a transfer many times larger.
use bytes::Bytes;
use futures_util::StreamExt;
use session::provider::Provider;
use session::transfer::{Incoming, Wire};
use session::wire::filesync::file_sync_client::FileSyncClient;
use session::wire::fsutil::{Packet, packet::PacketType};
use session::{LocalCaller, LocalOptions, SessionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// A stream's window of HTTP/2, and what lies in queues on the way.
const ON_THE_WAY: u64 = 12 << 20;
/// What a wire reads ahead, and the packet it has in hand.
const READ_AHEAD: u64 = (4 << 20) + (1 << 20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_never_far_ahead_of_a_daemon_that_reads_slowly() {
    const SIZE: u64 = 128 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let file = std::fs::File::create(folder.path().join("big")).expect("made");
    file.set_len(SIZE).expect("made large");
    let options = LocalOptions {
        dirs: BTreeMap::from([("context".to_owned(), folder.path().to_owned())]),
        ..LocalOptions::default()
    };
    let local = Arc::new(LocalCaller::new(SessionId::new("s"), options));
    let provider = Provider::new(local, BTreeMap::new(), BTreeMap::new());
    let (to_client, at_client) = mpsc::channel::<Bytes>(16);
    let (to_daemon, at_daemon) = mpsc::channel::<Bytes>(16);
    let ended = CancellationToken::new();
    let stop = ended.clone();
    tokio::spawn(async move {
        let inbound = ReceiverStream::new(at_client).map(Ok);
        provider.serve(inbound, to_daemon, stop).await
    });
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let inbound = ReceiverStream::new(at_daemon).map(move |data| {
        counted.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(data)
    });
    let channel = session::tunnel::channel(inbound, to_client)
        .await
        .expect("greeted");
    let (ask, asked) = mpsc::channel(4);
    let mut call = Request::new(ReceiverStream::new(asked));
    call.metadata_mut()
        .insert("dir-name", "context".parse().expect("a header"));
    let mut client = FileSyncClient::new(channel).max_decoding_message_size(16 << 20);
    let mut packets = client.diff_copy(call).await.expect("answered").into_inner();
    let request = Packet {
        r#type: PacketType::PacketReq.into(),
        ..Packet::default()
    };
    ask.send(request).await.expect("asked");
    let (mut taken, mut most) = (0, 0);
    while let Some(packet) = packets.message().await.expect("sent") {
        taken += packet.data.len() as u64;
        most = most.max(sent.load(Ordering::Relaxed).saturating_sub(taken));
        if PacketType::try_from(packet.r#type) == Ok(PacketType::PacketData) && packet.data.is_empty() {
            break;
        }
    }
    assert_eq!(taken, SIZE);
    assert!(most <= ON_THE_WAY, "{most} bytes were on the way");
    ended.cancel();
}

#[test]
fn a_wire_reads_no_further_ahead_than_its_bound() {
    const PACKETS: u64 = 4096;
    const BYTES: usize = 64 << 10;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let made = Arc::new(AtomicU64::new(0));
    let counted = made.clone();
    let data = Bytes::from(vec![7; BYTES]);
    let stream = futures_util::stream::iter(0..PACKETS).map(move |_| {
        counted.fetch_add(BYTES as u64, Ordering::Relaxed);
        Ok(Packet {
            r#type: PacketType::PacketData.into(),
            data: data.clone(),
            ..Packet::default()
        })
    });
    let opened = std::future::ready(Ok(stream));
    let mut wire = Wire::new(opened, |_| true, CancellationToken::new());
    let (mut taken, mut most) = (0, 0);
    while let Some(packet) = wire.next() {
        taken += packet.expect("a packet").data.len() as u64;
        most = most.max(made.load(Ordering::Relaxed).saturating_sub(taken));
    }
    assert_eq!(taken, PACKETS * BYTES as u64);
    assert!(most <= READ_AHEAD, "{most} bytes were read ahead");
}
