//! Definitions that are meant to hurt, sent to a daemon: each gets its answer, and the daemon goes on.

mod support;

use api::control::SolveRequest;
use llb::op::{DiffOp, MergeOp, Op, SourceOp};
use llb::{Edge, op_bytes, proto};
use oci::Digest;
use prost::Message;
use support::{Client, Daemon, context, local};

/// Ops one after the other.
#[derive(Default)]
struct Ops(Vec<Vec<u8>>);

impl Ops {
    fn add(&mut self, inputs: &[Edge], op: &Op) -> Edge {
        let bytes = op_bytes(inputs, op, None);
        let digest = Digest::of(&bytes);
        self.0.push(bytes);
        Edge { digest, index: 0 }
    }

    fn source(&mut self, identifier: &str) -> Edge {
        let source = SourceOp {
            identifier: identifier.to_owned(),
            ..SourceOp::default()
        };
        self.add(&[], &Op::Source(source))
    }

    fn end(mut self, root: Edge) -> proto::Definition {
        self.0
            .push(naming(root.digest.to_string(), i64::from(root.index)));
        proto::Definition {
            def: self.0,
            ..proto::Definition::default()
        }
    }
}

/// The last entry, which names the result.
fn naming(digest: String, index: i64) -> Vec<u8> {
    let op = proto::Op {
        inputs: vec![proto::Input { digest, index }],
        ..proto::Op::default()
    };
    op.encode_to_vec()
}

async fn refusal(client: &Client, id: &str, definition: proto::Definition) -> String {
    let request = SolveRequest {
        r#ref: id.into(),
        definition: Some(definition),
        ..SolveRequest::default()
    };
    let mut control = client.control();
    control
        .solve(request)
        .await
        .expect_err("refused")
        .message()
        .to_owned()
}

fn merge(of: &[u32]) -> Op {
    Op::Merge(MergeOp {
        inputs: of.iter().copied().map(Some).collect(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_its_answer_and_the_daemon_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    // Nobody offers this directory, so nothing above it is ever made.
    let nowhere = "local://nowhere";

    let mut deep = Ops::default();
    let mut top = deep.source(nowhere);
    for _ in 0..20_000 {
        let diff = DiffOp {
            lower: None,
            upper: Some(0),
        };
        top = deep.add(&[top], &Op::Diff(diff));
    }
    let mut doubled = Ops::default();
    let mut root = doubled.source(nowhere);
    for _ in 0..500 {
        root = doubled.add(&[root, root], &merge(&[0, 1]));
    }
    let mut wide = Ops::default();
    let one = wide.source(nowhere);
    let all = wide.add(&[one], &merge(&[0; 9_000]));
    let mut many = Ops::default();
    let mut last = many.source(nowhere);
    for _ in 0..60_000 {
        last = many.add(&[last], &merge(&[0]));
    }
    let mut beyond = Ops::default();
    let source = beyond.source(nowhere);
    let missing = Edge {
        digest: source.digest,
        index: 7,
    };
    let mut unknown = Ops::default();
    let what = unknown.source("what://ever");
    let alone = proto::Definition {
        def: vec![naming(Digest::of(b"x").to_string(), 0)],
        ..proto::Definition::default()
    };
    let noise = proto::Definition {
        def: vec![vec![0xff; 1000], naming(Digest::of(&[0xff; 1000]).to_string(), 0)],
        ..proto::Definition::default()
    };
    let mut negative = Ops::default();
    let base = negative.source(nowhere);
    negative.0.push(naming(base.digest.to_string(), -1));
    let negative = proto::Definition {
        def: negative.0,
        ..proto::Definition::default()
    };

    let cases = [
        ("deep", deep.end(top), "nowhere"),
        ("doubled", doubled.end(root), "nowhere"),
        ("wide", wide.end(all), "nowhere"),
        ("many", many.end(last), "ops"),
        ("beyond", beyond.end(missing), "output"),
        ("unknown", unknown.end(what), "source what:// is not supported"),
        ("alone", alone, "no op"),
        ("noise", noise, "failed to load LLB"),
        ("negative", negative, "-1"),
    ];
    for (id, definition, words) in cases {
        let said = refusal(&client, id, definition).await;
        assert!(said.contains(words), "{id}: {said}");
        assert!(said.len() < 4_000, "{id}: {} bytes", said.len());
    }

    let context = context(folder.path(), "FROM scratch\nCOPY file /\n");
    let place = support::directory(&folder.path().join("out"));
    let built = client.build("after", &context, local(), Some(place)).await;
    built.answer.expect("it builds");
}
