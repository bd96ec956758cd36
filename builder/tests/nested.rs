//! Build ops: definitions found in results.

mod support;

use api::control::{Exporter, SolveRequest};
use llb::proto::{self, op::Op};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use support::{Client, Daemon, directory, local};
use tonic::Status;

/// A definition of ops, each with the one before as its input, as it goes over the wire.
fn definition(ops: Vec<Op>) -> proto::Definition {
    let mut encoded: Vec<Vec<u8>> = Vec::new();
    let input = |encoded: &[Vec<u8>]| {
        let last = encoded.last().map(|bytes| oci::Digest::of(bytes).to_string());
        let inputs = last.map(|digest| proto::Input { digest, index: 0 });
        inputs.into_iter().collect()
    };
    for op in ops {
        let op = proto::Op {
            inputs: input(&encoded),
            op: Some(op),
            ..<_>::default()
        };
        encoded.push(op.encode_to_vec());
    }
    let result = proto::Op {
        inputs: input(&encoded),
        ..<_>::default()
    };
    encoded.push(result.encode_to_vec());
    proto::Definition {
        def: encoded,
        ..<_>::default()
    }
}

fn file(path: &str, data: Vec<u8>) -> Op {
    let make = proto::FileActionMkFile {
        path: path.into(),
        mode: 0o644,
        data,
        timestamp: -1,
        ..<_>::default()
    };
    Op::File(proto::FileOp {
        actions: vec![proto::FileAction {
            input: -1,
            secondary_input: -1,
            output: 0,
            action: Some(proto::file_action::Action::Mkfile(make)),
        }],
    })
}

fn build(name: Option<&str>) -> Op {
    let input = proto::BuildInput { input: 0 };
    Op::Build(proto::BuildOp {
        builder: -1,
        inputs: BTreeMap::from([("buildkit.llb.definition".to_owned(), input)]),
        attrs: name
            .map(|name| ("llbbuild.filename".to_owned(), name.to_owned()))
            .into_iter()
            .collect(),
        ..<_>::default()
    })
}

/// A build of a file that holds `inner`.
fn nested(inner: &proto::Definition) -> proto::Definition {
    let name = "buildkit.llb.definition";
    definition(vec![file(name, inner.encode_to_vec()), build(None)])
}

/// Solves it with the folder `ctx` at hand, into the folder `out`.
async fn solve(
    client: &Client,
    id: &str,
    folder: &Path,
    wanted: proto::Definition,
) -> Result<String, Status> {
    let (ctx, out) = (folder.join("ctx"), folder.join(id));
    std::fs::create_dir_all(&ctx).expect("made");
    let session = format!("session-{id}");
    let stop = client
        .session(&session, &[("ctx", &ctx)], Some(directory(&out)))
        .await;
    let exporters: Vec<Exporter> = local();
    let request = SolveRequest {
        r#ref: id.into(),
        session,
        definition: Some(wanted),
        exporters,
        ..SolveRequest::default()
    };
    let answer = client.control().solve(request).await;
    stop.settle().await;
    stop.cancel();
    answer?;
    Ok(std::fs::read_to_string(out.join("hello")).expect("it was sent"))
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_in_results_are_solved_in_the_same_build() {
    let folder = tempfile::tempdir().expect("a folder");
    // One step at a time: those that wait for others must not keep them from running.
    let config = folder.path().join("buildkitd.toml");
    std::fs::write(&config, "[worker.oci]\nmax-parallelism = 1\n").expect("written");
    let daemon = Daemon::start_as(folder.path(), |command| {
        command.arg("--config").arg(&config);
    });
    let client = daemon.client().await;
    let plain = definition(vec![file("/hello", b"inside".to_vec())]);
    let events = client.watch("one");
    let said = solve(&client, "one", folder.path(), nested(&plain))
        .await
        .expect("solved");
    assert_eq!(said, "inside");
    let events = events.await.expect("watched");
    let names: Vec<_> = events
        .iter()
        .flat_map(|event| &event.vertexes)
        .map(|vertex| vertex.name.clone())
        .collect();
    assert!(
        names.contains(&"mkfile /hello".to_owned()),
        "its steps are shown: {names:?}"
    );
    // By another name, three deep.
    let named = definition(vec![file("/d.pb", plain.encode_to_vec()), build(Some("d.pb"))]);
    let deep = nested(&nested(&named));
    let said = solve(&client, "three", folder.path(), deep.clone())
        .await
        .expect("solved");
    assert_eq!(said, "inside");
    // The second time all is known.
    let events = client.watch("again");
    solve(&client, "again", folder.path(), deep)
        .await
        .expect("solved");
    let events = events.await.expect("watched");
    let mut vertices = events.iter().flat_map(|event| &event.vertexes);
    assert!(
        vertices
            .clone()
            .any(|vertex| vertex.name == "build" && vertex.cached)
    );
    assert!(
        !vertices.any(|vertex| vertex.name == "mkfile /hello"),
        "nothing is solved again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_in_results_are_checked_as_any_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let mut deep = definition(vec![file("/hello", b"inside".to_vec())]);
    for _ in 0..17 {
        deep = nested(&deep);
    }
    let context = || {
        Op::Source(proto::SourceOp {
            identifier: "local://ctx".into(),
            ..<_>::default()
        })
    };
    // What is built is what was found there, and asks for itself.
    let itself = definition(vec![context(), build(Some("self.pb"))]);
    std::fs::create_dir_all(folder.path().join("ctx")).expect("made");
    std::fs::write(folder.path().join("ctx/self.pb"), itself.encode_to_vec()).expect("written");
    let host = Op::Exec(proto::ExecOp {
        meta: Some(proto::Meta {
            args: vec!["true".into()],
            cwd: "/".into(),
            ..<_>::default()
        }),
        mounts: vec![proto::Mount {
            dest: "/".into(),
            ..<_>::default()
        }],
        network: proto::NetMode::Host.into(),
        ..<_>::default()
    });
    let host = definition(vec![context(), host]);
    let other_builder = |builder| {
        let Op::Build(mut op) = build(None) else {
            unreachable!("it is one")
        };
        op.builder = builder;
        definition(vec![context(), Op::Build(op)])
    };
    let wrong = [
        ("deep", deep, "16 builds inside each other"),
        ("self", itself, "leads back to it"),
        ("host", nested(&host), "network.host is not allowed"),
        (
            "missing",
            definition(vec![context(), build(None)]),
            "not a regular file",
        ),
        (
            "garbage",
            definition(vec![file("d", b"no definition".to_vec()), build(Some("d"))]),
            "definition",
        ),
        (
            "builder",
            other_builder(0),
            "only LLB builder is currently allowed",
        ),
    ];
    for (id, wanted, text) in wrong {
        let status = solve(&client, id, folder.path(), wanted).await.expect_err(id);
        assert!(status.message().contains(text), "{id}: {}", status.message());
    }
    // The daemon is well.
    let plain = definition(vec![file("/hello", b"still here".to_vec())]);
    let said = solve(&client, "well", folder.path(), nested(&plain)).await;
    assert_eq!(said.expect("solved"), "still here");
}
