//! Encoded definitions changed at random: the decoder refuses or accepts them, and never panics; what it
//! accepts has vertices whose inputs and outputs are there.

use llb::cache::op_key;
use llb::op::{CacheMount, CopyAction, ExecMeta, MkdirAction, SecretMount};
use llb::state::{
    ActionSpec, ChownSpec, Constraints, ExecSpec, FileSpec, HttpSource, ImageSource, MountSource, MountSpec,
    OwnerSpec, State, diff, marshal, merge,
};
use llb::{Definition, Graph};
use oci::{Digest, Platform};
use prost::Message as _;

/// A definition with every op we make.
fn everything() -> Vec<u8> {
    let on = || Constraints::on(Platform::new("linux", "amd64")).named("x");
    let image = ImageSource {
        reference: "docker.io/library/a:latest".into(),
        ..Default::default()
    }
    .state(on());
    let http = HttpSource {
        url: "https://h/x".into(),
        ..Default::default()
    }
    .state(Constraints::default());
    let owner = ChownSpec {
        user: Some(OwnerSpec::Name("u".into())),
        group: Some(OwnerSpec::Id(7)),
    };
    let mkdir = MkdirAction {
        path: "/d".into(),
        mode: 0o755,
        timestamp: -1,
        ..Default::default()
    };
    let copy = CopyAction {
        src: "/x".into(),
        dest: "/d/".into(),
        mode: -1,
        timestamp: -1,
        ..Default::default()
    };
    let actions = vec![
        ActionSpec::Mkdir {
            action: mkdir,
            owner: Some(owner),
        },
        ActionSpec::Copy {
            action: copy,
            from: http,
            owner: None,
        },
    ];
    let copied = FileSpec {
        base: image.clone(),
        actions,
    }
    .state(Constraints::default());
    let meta = ExecMeta {
        args: vec!["a".into()],
        env: vec!["A=b".into()],
        cwd: "/".into(),
        ..Default::default()
    };
    let cache = MountSource::Cache(
        CacheMount {
            id: "c".into(),
            ..Default::default()
        },
        State::scratch(),
    );
    let mounts = vec![
        MountSpec::new("/", MountSource::State(copied)),
        MountSpec::new("/c", cache),
        MountSpec {
            readonly: true,
            selector: "/s".into(),
            ..MountSpec::new("/r", MountSource::State(image.clone()))
        },
        MountSpec::new("/t", MountSource::Tmpfs { size: 9 }),
    ];
    let secrets = vec![(
        "/run/s".to_owned(),
        SecretMount {
            id: "s".into(),
            mode: 0o400,
            ..Default::default()
        },
    )];
    let ran = ExecSpec {
        meta,
        mounts,
        secrets,
        ..Default::default()
    }
    .run(on())
    .root();
    let all = merge(
        &[image.clone(), diff(&image, &ran, Constraints::default())],
        Constraints::default(),
    );
    marshal(&all).expect("a whole graph").to_proto().encode_to_vec()
}

fn check(graph: &Graph) {
    let platform = Platform::new("linux", "amd64");
    for (at, vertex) in graph.vertices.iter().enumerate() {
        for input in &vertex.inputs {
            let found = graph.vertices[..at]
                .iter()
                .find(|earlier| earlier.digest == input.digest);
            let found = found.expect("inputs come before their users");
            assert!((input.index as usize) < found.output_count());
        }
        if let Ok(Some(key)) = op_key(vertex, &platform) {
            assert_eq!(key.deps.len(), vertex.inputs.len());
        }
        assert!(vertex.name().len() < 1 << 20);
    }
}

#[test]
fn changed_definitions_never_panic() {
    let whole = everything();
    check(
        &Definition::from_bytes(&whole)
            .expect("read")
            .to_graph()
            .expect("valid"),
    );
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    let mut accepted = 0;
    for _ in 0..10_000 {
        // Changed ops keep their places: inputs are renamed to the digests the changed bytes have.
        let mut definition = Definition::from_bytes(&whole).expect("read");
        let mut renamed: Vec<(String, String)> = Vec::new();
        let victim = below(definition.ops.len());
        for (number, op) in definition.ops.iter_mut().enumerate() {
            let before = Digest::of(op).to_string();
            for (from, to) in &renamed {
                replace(op, from.as_bytes(), to.as_bytes());
            }
            for _ in 0..if number == victim { 1 + below(3) } else { 0 } {
                let at = below(op.len());
                match below(4) {
                    0 => op[at] = below(256) as u8,
                    1 => op[at] = op[at].wrapping_add(1),
                    2 => op.insert(at, below(256) as u8),
                    _ => {
                        op.remove(at);
                    }
                }
            }
            renamed.push((before, Digest::of(op).to_string()));
        }
        if let Ok(graph) = definition.to_graph() {
            accepted += 1;
            check(&graph);
        }
        let mut bytes = whole.clone();
        let at = below(bytes.len());
        bytes[at] = below(256) as u8;
        if let Ok(definition) = Definition::from_bytes(&bytes) {
            let _ = definition.to_graph().map(|graph| check(&graph));
        }
    }
    assert!(accepted > 250, "only {accepted} were accepted");
}

/// Replaces a text by one of the same length.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from) {
        bytes[at + found..at + found + to.len()].copy_from_slice(to);
        at += found + to.len();
    }
}
