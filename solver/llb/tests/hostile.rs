//! Definitions that are well formed and meant to hurt: deep, wide, doubled; and ones made by chance.

use llb::op::{DiffOp, MergeOp, Op, SourceOp};
use llb::{Definition, Edge, Error, op_bytes, proto};
use oci::Digest;
use prost::Message as _;

/// Ops one after the other, and how to name the last.
#[derive(Default)]
struct Ops(Vec<Vec<u8>>);

impl Ops {
    fn add(&mut self, inputs: &[Edge], op: &Op) -> Edge {
        let bytes = op_bytes(inputs, op, None);
        let digest = Digest::of(&bytes);
        self.0.push(bytes);
        Edge { digest, index: 0 }
    }

    fn source(&mut self) -> Edge {
        let source = SourceOp {
            identifier: "local://context".to_owned(),
            ..SourceOp::default()
        };
        self.add(&[], &Op::Source(source))
    }

    fn end(mut self, root: Edge) -> Definition {
        let last = proto::Op {
            inputs: vec![input(root.digest.to_string(), 0)],
            ..proto::Op::default()
        };
        self.0.push(last.encode_to_vec());
        Definition {
            ops: self.0,
            ..Definition::default()
        }
    }
}

fn input(digest: String, index: i64) -> proto::Input {
    proto::Input { digest, index }
}

fn twice() -> Op {
    Op::Merge(MergeOp {
        inputs: vec![Some(0), Some(1)],
    })
}

#[test]
fn names_do_not_double() {
    let mut ops = Ops::default();
    let mut top = ops.source();
    for _ in 0..200 {
        top = ops.add(&[top, top], &twice());
    }
    let graph = ops.end(top).to_graph().expect("it is well formed");
    let longest = graph.vertices.iter().map(|vertex| vertex.name().len()).max();
    assert!(longest.is_some_and(|longest| longest < 10_000), "{longest:?}");
}

#[test]
fn a_chain_as_long_as_may_be() {
    let mut ops = Ops::default();
    let mut top = ops.source();
    for _ in 0..llb::limits::MAX_OPS - 2 {
        let diff = DiffOp {
            lower: None,
            upper: Some(0),
        };
        top = ops.add(&[top], &Op::Diff(diff));
    }
    let graph = ops.end(top).to_graph().expect("it is well formed");
    assert_eq!(graph.vertices.len(), llb::limits::MAX_OPS - 1);
    let bytes: usize = graph.vertices.iter().map(|vertex| vertex.name().len()).sum();
    assert!(bytes < 100 << 20, "{bytes} bytes of names");
}

#[test]
fn one_too_many() {
    let mut ops = Ops::default();
    let mut top = ops.source();
    for _ in 0..llb::limits::MAX_OPS {
        top = ops.add(&[top, top], &twice());
    }
    let refused = ops.end(top).to_graph();
    assert!(
        matches!(refused, Err(Error::TooLarge { what: "ops", .. })),
        "{refused:?}"
    );
}

/// Chance that can be had again (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn index(&mut self) -> i64 {
        match self.below(8) {
            0 => -1,
            1 => -2,
            2 => i64::MAX,
            3 => i64::MIN,
            4 => 10_000,
            other => other as i64 - 5,
        }
    }

    fn path(&mut self) -> String {
        let all = [
            "/",
            "",
            "..",
            "../../etc",
            "/a/../..",
            "\0",
            "a\nb",
            "/proc/self/mem",
            "*",
            "💥",
        ];
        match self.below(12) {
            11 => "/x".repeat(40_000),
            at => all[at as usize % all.len()].to_owned(),
        }
    }

    fn op(&mut self, known: &[String]) -> proto::Op {
        let count = self.below(4);
        let inputs = (0..count).map(|_| {
            let digest = match self.below(10) {
                0 => Digest::of(b"nowhere").to_string(),
                1 => "sha256:none".to_owned(),
                _ if known.is_empty() => String::new(),
                at => known[at as usize % known.len()].clone(),
            };
            input(digest, if self.below(4) == 0 { self.index() } else { 0 })
        });
        let inputs: Vec<_> = inputs.collect();
        let op = match self.below(7) {
            0 => None,
            1 => Some(proto::op::Op::Source(proto::SourceOp {
                identifier: ["local://x", "", "://", "docker-image://", "what://ever"]
                    [self.below(5) as usize]
                    .into(),
                attrs: (0..self.below(30))
                    .map(|at| (at.to_string(), self.path()))
                    .collect(),
            })),
            2 => Some(proto::op::Op::Merge(proto::MergeOp {
                inputs: (0..self.below(6))
                    .map(|_| proto::MergeInput { input: self.index() })
                    .collect(),
            })),
            3 => Some(proto::op::Op::Diff(proto::DiffOp {
                lower: (self.below(3) > 0).then(|| proto::LowerDiffInput { input: self.index() }),
                upper: (self.below(3) > 0).then(|| proto::UpperDiffInput { input: self.index() }),
            })),
            4 => Some(proto::op::Op::Exec(proto::ExecOp {
                meta: (self.below(4) > 0).then(|| proto::Meta {
                    args: (0..self.below(3)).map(|_| self.path()).collect(),
                    cwd: self.path(),
                    ..proto::Meta::default()
                }),
                mounts: (0..self.below(5))
                    .map(|_| proto::Mount {
                        input: self.index(),
                        output: self.index(),
                        dest: self.path(),
                        selector: self.path(),
                        mount_type: self.below(9) as i32 - 1,
                        ..proto::Mount::default()
                    })
                    .collect(),
                network: self.below(5) as i32 - 1,
                security: self.below(4) as i32 - 1,
                ..proto::ExecOp::default()
            })),
            5 => Some(proto::op::Op::File(proto::FileOp {
                actions: (0..self.below(4))
                    .map(|_| proto::FileAction {
                        input: self.index(),
                        secondary_input: self.index(),
                        output: self.index(),
                        action: (self.below(4) > 0).then(|| {
                            proto::file_action::Action::Mkdir(proto::FileActionMkDir {
                                path: self.path(),
                                mode: self.index() as i32,
                                timestamp: self.index(),
                                ..proto::FileActionMkDir::default()
                            })
                        }),
                    })
                    .collect(),
            })),
            _ => Some(proto::op::Op::Build(proto::BuildOp {
                builder: self.index(),
                ..proto::BuildOp::default()
            })),
        };
        proto::Op {
            inputs,
            op,
            ..proto::Op::default()
        }
    }
}

#[test]
fn by_chance_they_are_taken_or_refused_in_words() {
    let mut chance = Chance(0x5eed);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..4_000 {
        let (mut known, mut def) = (Vec::new(), Vec::new());
        for _ in 0..=chance.below(6) {
            let bytes = chance.op(&known).encode_to_vec();
            known.push(Digest::of(&bytes).to_string());
            def.push(bytes);
        }
        let last = proto::Op {
            inputs: vec![input(known[chance.below(known.len() as u64) as usize].clone(), 0)],
            ..proto::Op::default()
        };
        def.push(last.encode_to_vec());
        let wire = proto::Definition {
            def,
            ..proto::Definition::default()
        };
        match Definition::from_proto(wire).and_then(|definition| definition.to_graph()) {
            Ok(graph) => {
                taken += 1;
                assert!(graph.root.is_some());
            }
            Err(error) => {
                refused += 1;
                let words = error.to_string();
                assert!(!words.is_empty() && words.len() < 1000, "{words}");
            }
        }
    }
    assert!(taken > 20 && refused > 1000, "{taken} taken, {refused} refused");
}
