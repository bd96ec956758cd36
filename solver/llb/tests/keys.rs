//! The op digests, selectors and root keys of `protocol/cache.md`, all seen in caches BuildKit exported.
//!
//! The graph: `WORKDIR /app`, `COPY a.txt sub/ ./`, `RUN …`, then `COPY --from=base /app /final`.

use llb::cache::{OpKey, content_digest, image_manifest_key, op_key, source_key};
use llb::op::{CopyAction, ExecMeta, MkdirAction};
use llb::state::{
    ActionSpec, Constraints, ExecSpec, FileSpec, ImageSource, LocalSource, MountSource, MountSpec, State,
    marshal,
};
use oci::{Digest, Platform};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The key of output `index` of an op without inputs.
fn root_key(digest: Digest, index: i64) -> String {
    Digest::of(format!("{digest}@{index}").as_bytes()).hex()
}

fn copy(src: &str, dest: &str, from: &State) -> ActionSpec {
    let action = CopyAction {
        src: src.to_owned(),
        dest: dest.to_owned(),
        mode: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        timestamp: -1,
        ..CopyAction::default()
    };
    ActionSpec::Copy {
        action,
        from: from.clone(),
        owner: None,
    }
}

/// The last op's key.
fn key_of(state: &State) -> OpKey {
    let graph = marshal(state)
        .expect("a whole graph")
        .to_graph()
        .expect("a valid graph");
    let root = graph.root.expect("not scratch");
    let vertex = graph.vertex(&root.digest).expect("the root is a vertex");
    op_key(vertex, &Platform::new("linux", "amd64"))
        .expect("a key")
        .expect("not a source")
}

struct Stages {
    mkdir: State,
    copied: State,
    ran: State,
    last: State,
}

fn stages() -> Stages {
    let amd64 = || Constraints::on(Platform::new("linux", "amd64"));
    let image = ImageSource {
        reference: "docker.io/library/base:latest".into(),
        ..Default::default()
    }
    .state(amd64());
    let context = LocalSource {
        name: "context".into(),
        ..Default::default()
    }
    .state(Constraints::default());
    let mkdir = MkdirAction {
        path: "/app".into(),
        mode: 0o755,
        make_parents: true,
        timestamp: -1,
        ..Default::default()
    };
    let mkdir = FileSpec {
        base: image,
        actions: vec![ActionSpec::Mkdir {
            action: mkdir,
            owner: None,
        }],
    };
    let mkdir = mkdir.state(Constraints::default());
    let actions = vec![copy("/a.txt", "/app/", &context), copy("/sub", "/app/", &context)];
    let copied = FileSpec {
        base: mkdir.clone(),
        actions,
    }
    .state(Constraints::default());
    let meta = ExecMeta {
        args: ["/bin/sh", "-c", "echo hello && echo \"x\" > /app/out"]
            .map(str::to_owned)
            .to_vec(),
        env: vec![PATH.to_owned()],
        cwd: "/app".into(),
        remove_mount_stubs_recursive: true,
        ..Default::default()
    };
    let mounts = vec![MountSpec::new("/", MountSource::State(copied.clone()))];
    let ran = ExecSpec {
        meta,
        mounts,
        ..Default::default()
    }
    .run(amd64())
    .root();
    let last = FileSpec {
        base: State::scratch(),
        actions: vec![copy("/app", "/final", &ran)],
    };
    let last = last.state(Constraints::default());
    Stages {
        mkdir,
        copied,
        ran,
        last,
    }
}

#[test]
fn op_digests_equal_those_in_exported_caches() {
    let stages = stages();
    for (name, state, expected) in [
        (
            "mkdir",
            &stages.mkdir,
            "807b3e8722c68572736f54d83fd741a5b1d69ccbef218fae52b4149a56d232ce",
        ),
        (
            "copy",
            &stages.copied,
            "68469535c9bb25b9f226c6c882559bdabc86259991fe22b7040188933fd88a54",
        ),
        (
            "exec",
            &stages.ran,
            "81d9fd0500b24f43f92e26209a65129b1d2f007c8f550eb5a93d81e9f423ea56",
        ),
    ] {
        let key = key_of(state);
        assert_eq!(root_key(key.digest, 0), expected, "{name}: {}", key.text);
    }
}

#[test]
fn a_copy_onto_an_image_knows_its_source_by_base_name_only() {
    let stages = stages();
    let image = ImageSource {
        reference: "docker.io/library/base:latest".into(),
        ..Default::default()
    }
    .state(Constraints::on(Platform::new("linux", "amd64")));
    let last = FileSpec {
        base: image,
        actions: vec![copy("/app", "/final", &stages.ran)],
    };
    let key = key_of(&last.state(Constraints::default()));
    assert_eq!(
        root_key(key.digest, 0),
        "e5d4d08bd476c1cc07375b92af39f8f7d7ba6f0eeffece64e303d420748ad36c"
    );
    assert_eq!(
        key.deps[1].selector.expect("a selector").hex(),
        "f53b52ad6d21cceb72dfa78fb67614fe14f110c58e68412b01508d6a485501c3"
    );
    assert!(
        key.deps[0].selector.is_none() && key.deps[0].content.is_none(),
        "the base takes part as a whole"
    );
    // From scratch the positions are not the usual ones, so they are part of the key.
    assert!(key_of(&stages.last).text.contains("indexes"));
}

#[test]
fn inputs_take_part_by_selector_and_content() {
    let stages = stages();
    let copy = key_of(&stages.copied);
    let paths: Vec<&str> = copy.deps[1]
        .content
        .as_ref()
        .expect("content")
        .iter()
        .map(|s| s.path.as_str())
        .collect();
    assert_eq!(paths, ["/a.txt", "/sub"]);
    assert_eq!(copy.deps[1].selector, Some(Digest::of(b"/sub\0/a.txt")));
    let exec = key_of(&stages.ran);
    assert_eq!(
        exec.deps[0].selector.expect("a selector").hex(),
        "8a5edab282632443219e051e4ade2d1d5bbc671c781051bf1437897cbdfea0f1"
    );
    assert_eq!(exec.deps[0].content, None, "the root is never known by content");
}

#[test]
fn image_sources_are_known_by_manifest_and_platform() {
    let manifest = Digest::parse("sha256:0114b6bda8d7ef3211aeaeb5efaae98427e8e41a5bb21a12e87adbd1c8954021")
        .expect("a digest");
    let key = image_manifest_key(&manifest, &Platform::new("linux", "amd64"), None);
    let expected = "9162d075b9465994feb43ee982ec00192e940777c76ff998b98399bc4517d9ba";
    assert_eq!(root_key(source_key(&key.to_string()), 0), expected);
}

#[test]
fn content_digests_of_several_paths_are_joined_as_text() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    assert_eq!(
        content_digest(&[a, b]),
        Digest::of(format!("{a}\0{b}").as_bytes())
    );
    assert_eq!(content_digest(&[a]), Digest::of(a.to_string().as_bytes()));
}

#[test]
fn a_build_op_has_the_key_that_go_gives_it() {
    use llb::proto::{self, op::Op};
    use prost::Message;
    let key = |attrs: &[(&str, &str)]| {
        let file = proto::FileActionMkFile {
            path: "/d".into(),
            ..<_>::default()
        };
        let file = Op::File(proto::FileOp {
            actions: vec![proto::FileAction {
                input: -1,
                secondary_input: -1,
                action: Some(proto::file_action::Action::Mkfile(file)),
                ..<_>::default()
            }],
        });
        let build = Op::Build(proto::BuildOp {
            builder: -1,
            inputs: [(
                "buildkit.llb.definition".to_owned(),
                proto::BuildInput { input: 0 },
            )]
            .into(),
            attrs: attrs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..<_>::default()
        });
        let mut ops: Vec<Vec<u8>> = Vec::new();
        for op in [Some(file), Some(build), None] {
            let inputs = ops.last().map(|bytes| proto::Input {
                digest: Digest::of(bytes).to_string(),
                index: 0,
            });
            let op = proto::Op {
                inputs: inputs.into_iter().collect(),
                op,
                ..<_>::default()
            };
            ops.push(op.encode_to_vec());
        }
        let definition = llb::Definition {
            ops,
            ..<_>::default()
        };
        let graph = definition.to_graph().expect("a valid graph");
        let root = graph.root.expect("not scratch");
        let vertex = graph.vertex(&root.digest).expect("the root is a vertex");
        let key = op_key(vertex, &Platform::new("linux", "amd64")).expect("a key");
        key.expect("not a source").digest.hex()
    };
    assert_eq!(
        key(&[]),
        "00929a9b624b0e7bca3fbf329b26578f675f5628b7a65eac7a9e5ab63760603b"
    );
    assert_eq!(
        key(&[("llbbuild.filename", "<a>.pb")]),
        "2d6b60c3f5bd614ab13601aca73afb9146009a30c4293aad6342622f05312b10"
    );
}
