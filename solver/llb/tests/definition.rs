//! Definitions out and in again; what must be refused at the door.

use llb::op::{ExecMeta, MkfileAction};
use llb::state::{
    ActionSpec, Constraints, ExecSpec, FileSpec, ImageSource, MountSource, MountSpec, State, marshal, merge,
};
use llb::{Definition, Error, proto};
use oci::{Digest, Platform};
use prost::Message as _;

fn image() -> State {
    let constraints = Constraints::on(Platform::new("linux", "amd64")).named("[1/2] FROM base");
    ImageSource {
        reference: "docker.io/library/base:latest".into(),
        ..Default::default()
    }
    .state(constraints)
}

fn ran(base: &State) -> State {
    let meta = ExecMeta {
        args: vec!["true".into()],
        cwd: "/".into(),
        ..Default::default()
    };
    let mounts = vec![
        MountSpec {
            discarded: true,
            ..MountSpec::new("/b", MountSource::State(base.clone()))
        },
        MountSpec::new("/", MountSource::State(base.clone())),
        MountSpec::new("/a", MountSource::State(State::scratch())),
    ];
    ExecSpec {
        meta,
        mounts,
        ..Default::default()
    }
    .run(Constraints::on(Platform::new("linux", "amd64")))
    .root()
}

#[test]
fn what_is_written_is_read_again() {
    let base = image();
    let definition = marshal(&merge(&[base.clone(), ran(&base)], Constraints::default())).expect("written");
    let again = Definition::from_bytes(&definition.to_proto().encode_to_vec()).expect("read");
    assert_eq!(again, definition);
    let graph = again.to_graph().expect("valid");
    let names: Vec<&str> = graph.vertices.iter().map(|vertex| vertex.name()).collect();
    assert_eq!(
        names,
        ["[1/2] FROM base", "true", "merge ([1/2] FROM base, true)"]
    );
    assert_eq!(graph.vertices[1].output_count(), 2, "/ and /a go on, /b does not");
}

#[test]
fn an_op_ends_with_the_op_itself_after_an_empty_field_11() {
    let definition = marshal(&image()).expect("written");
    let bytes = &definition.ops[0];
    // platform {amd64, linux}, constraints {}, source { identifier }
    assert_eq!(
        &bytes[..18],
        [
            &[0x52, 14, 10, 5],
            b"amd64".as_slice(),
            &[18, 5],
            b"linux",
            &[0x5a, 0]
        ]
        .concat()
    );
    assert_eq!(bytes[18], 0x1a);
}

#[test]
fn a_scratch_result_is_an_empty_definition() {
    let definition = marshal(&State::scratch()).expect("written");
    assert!(definition.is_scratch());
    assert_eq!(definition.to_graph().expect("valid").root, None);
}

#[test]
fn ops_of_another_definition_keep_their_digests() {
    let other = marshal(&ran(&image())).expect("written");
    let state = State::from_definition(other.clone()).expect("valid");
    assert_eq!(marshal(&state).expect("written").ops, other.ops);
    let both = marshal(&merge(&[image(), state], Constraints::default())).expect("written");
    assert!(other.ops[..2].iter().all(|op| both.ops.contains(op)));
    assert_eq!(both.ops.len(), 4, "the image is there once");
}

#[test]
fn promises_must_be_kept() {
    let (state, promise) = State::promised();
    let file = MkfileAction {
        path: "/x".into(),
        mode: 0o644,
        timestamp: -1,
        ..Default::default()
    };
    let spec = FileSpec {
        base: state,
        actions: vec![ActionSpec::Mkfile {
            action: file,
            owner: None,
        }],
    };
    let result = spec.state(Constraints::default());
    assert!(matches!(marshal(&result), Err(Error::Unfinished(_))));
    promise.keep(image());
    assert_eq!(marshal(&result).expect("written").ops.len(), 3);
}

/// Encodes ops as they are, each naming the one before by its digest, and the last as the result.
fn definition(ops: Vec<proto::Op>) -> Definition {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for mut op in ops {
        for input in &mut op.inputs {
            if input.digest == "previous" {
                input.digest = Digest::of(all.last().expect("an op before")).to_string();
            }
        }
        all.push(op.encode_to_vec());
    }
    let last = Digest::of(all.last().expect("an op")).to_string();
    let result = proto::Op {
        inputs: vec![proto::Input {
            digest: last,
            index: 0,
        }],
        ..Default::default()
    };
    all.push(result.encode_to_vec());
    Definition {
        ops: all,
        ..Default::default()
    }
}

fn source() -> proto::Op {
    let source = proto::SourceOp {
        identifier: "local://x".into(),
        ..Default::default()
    };
    proto::Op {
        op: Some(proto::op::Op::Source(source)),
        ..Default::default()
    }
}

fn exec(change: impl FnOnce(&mut proto::ExecOp)) -> proto::Op {
    let mut exec = proto::ExecOp {
        meta: Some(proto::Meta {
            args: vec!["true".into()],
            cwd: "/".into(),
            ..Default::default()
        }),
        mounts: vec![proto::Mount {
            dest: "/".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    change(&mut exec);
    let inputs = vec![proto::Input {
        digest: "previous".into(),
        index: 0,
    }];
    proto::Op {
        inputs,
        op: Some(proto::op::Op::Exec(exec)),
        ..Default::default()
    }
}

#[test]
fn hostile_definitions_are_refused_by_name() {
    let cases: Vec<(&str, Definition, &str)> = vec![
        ("fine", definition(vec![source(), exec(|_| {})]), ""),
        ("no op", definition(vec![proto::Op::default()]), "says nothing"),
        (
            "no args",
            definition(vec![source(), exec(|e| e.meta = None)]),
            "without arguments",
        ),
        (
            "mount of nothing",
            definition(vec![source(), exec(|e| e.mounts[0].input = 7)]),
            "is input 7, but there are 1",
        ),
        (
            "negative",
            definition(vec![source(), exec(|e| e.mounts[0].input = -2)]),
            "is input -2",
        ),
        (
            "huge output",
            definition(vec![source(), exec(|e| e.mounts[0].output = i64::MAX)]),
            "output number",
        ),
        (
            "no root",
            definition(vec![source(), exec(|e| e.mounts[0].dest = "/x".into())]),
            "0 mounts at /",
        ),
        (
            "two roots",
            definition(vec![source(), exec(|e| e.mounts = vec![e.mounts[0].clone(); 2])]),
            "2 mounts at /",
        ),
        (
            "network",
            definition(vec![source(), exec(|e| e.network = 9)]),
            "unknown network mode 9",
        ),
        (
            "mount type",
            definition(vec![source(), exec(|e| e.mounts[0].mount_type = 9)]),
            "unknown type 9",
        ),
        (
            "cache without options",
            definition(vec![source(), exec(|e| e.mounts[0].mount_type = 3)]),
            "options that do not fit",
        ),
        (
            "NUL",
            definition(vec![
                source(),
                exec(|e| e.meta.as_mut().expect("meta").user = "a\0b".into()),
            ]),
            "NUL",
        ),
        (
            "missing input",
            definition(vec![exec_of(&Digest::of(b"gone").to_string())]),
            "does not contain",
        ),
        ("no digest", definition(vec![exec_of("md5:00")]), "no digest"),
        (
            "no result",
            Definition {
                ops: vec![source().encode_to_vec(); 2],
                ..Default::default()
            },
            "is an op",
        ),
        ("output not there", bad_output(), "which has 1"),
        (
            "junk",
            Definition {
                ops: vec![vec![0xff; 9]; 2],
                ..Default::default()
            },
            "cannot read",
        ),
    ];
    for (name, definition, expected) in cases {
        match definition.to_graph() {
            Ok(_) => assert_eq!(expected, "", "{name} was accepted"),
            Err(error) => {
                let text = error.to_string();
                assert!(!expected.is_empty() && text.contains(expected), "{name}: {text}");
            }
        }
    }
}

fn exec_of(digest: &str) -> proto::Op {
    let mut op = exec(|_| {});
    op.inputs[0].digest = digest.to_owned();
    op
}

fn bad_output() -> Definition {
    let mut op = exec(|_| {});
    op.inputs[0].index = 1;
    definition(vec![source(), op])
}

#[test]
fn unknown_fields_of_ops_are_refused() {
    let mut bytes = source().encode_to_vec();
    bytes.extend([0x78, 0x01]);
    let result = proto::Op {
        inputs: vec![proto::Input {
            digest: Digest::of(&bytes).to_string(),
            index: 0,
        }],
        ..Default::default()
    };
    let definition = Definition {
        ops: vec![bytes, result.encode_to_vec()],
        ..Default::default()
    };
    assert!(matches!(
        definition.to_graph(),
        Err(Error::UnknownField {
            message: "Op",
            field: 15,
            ..
        })
    ));
}
