//! (tests) Fake ops, and the scheduler's questions answered in any order one likes.
//!
//! A result is a number that depends on exactly what a correct cache may rely on: an input whose content
//! counts enters by its content (the number modulo a small prime, so that different results often have
//! equal content), any other input by the number itself. So any wrong hit shows as a wrong number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use keys::{MemoryStore, ResultId};
use oci::Digest;
use parking_lot::Mutex;

use crate::error::{OpError, VertexError};
use crate::graph::BuildId;
use crate::load::{self, Plan, Step};
use crate::op::{CacheMap, Dep, Op, OpContext};
use crate::progress::{Clock, Event as Progress, EventReader, LogLimits, Stream, VertexInfo};
use crate::scheduler::{Command, Core, Event, Loaded, Owner};

/// Numbers that look random and are the same in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

/// One vertex of a fake build.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeVertex {
    /// Equal names with equal inputs are equal vertices.
    pub(crate) name: String,
    /// What enters the op digest; vertices may differ in name and be equal in this.
    pub(crate) op: String,
    pub(crate) inputs: Vec<usize>,
    /// Per input.
    pub(crate) content: Vec<bool>,
    pub(crate) ignore_cache: bool,
    pub(crate) is_local: bool,
    /// Of a source: its cache maps.
    pub(crate) maps: Vec<String>,
    /// Of a local source: what is there now.
    pub(crate) bytes: u64,
    pub(crate) fails: bool,
}

pub(crate) fn source(name: &str) -> FakeVertex {
    FakeVertex {
        name: name.into(),
        op: name.into(),
        maps: vec![name.into()],
        ..FakeVertex::default()
    }
}

pub(crate) fn local(name: &str, bytes: u64) -> FakeVertex {
    FakeVertex {
        is_local: true,
        bytes,
        ..source(name)
    }
}

pub(crate) fn run(name: &str, inputs: &[(usize, bool)]) -> FakeVertex {
    FakeVertex {
        name: name.into(),
        op: name.into(),
        inputs: inputs.iter().map(|(input, _)| *input).collect(),
        content: inputs.iter().map(|(_, content)| *content).collect(),
        ..FakeVertex::default()
    }
}

fn hash(text: &str) -> u64 {
    let digest = Digest::of(text.as_bytes());
    u64::from_be_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

fn content(result: u64) -> u64 {
    result % 5
}

impl FakeVertex {
    fn value(&self, inputs: &[u64]) -> u64 {
        if self.is_local {
            return self.bytes;
        }
        let parts = inputs.iter().zip(&self.content);
        let parts: Vec<_> = parts
            .map(|(input, by_content)| if *by_content { content(*input) } else { *input })
            .collect();
        hash(&format!("{} {parts:?}", self.op))
    }
}

/// What each vertex of a build must give.
pub(crate) fn expected(vertices: &[FakeVertex]) -> Vec<u64> {
    let mut values: Vec<u64> = Vec::new();
    for vertex in vertices {
        let inputs: Vec<_> = vertex.inputs.iter().map(|input| values[*input]).collect();
        values.push(vertex.value(&inputs));
    }
    values
}

/// An op for the cases that go through the async door.
pub(crate) struct FakeOp {
    pub(crate) vertex: FakeVertex,
    pub(crate) runs: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Op<u64> for FakeOp {
    async fn cache_map(&self, _: &OpContext, index: usize) -> Result<(CacheMap, bool), OpError> {
        Ok(cache_map(&self.vertex, index))
    }

    async fn content_digest(&self, _: &OpContext, _: usize, result: &u64) -> Result<Option<Digest>, OpError> {
        Ok(Some(Digest::of(&content(*result).to_be_bytes())))
    }

    async fn exec(&self, ctx: &OpContext, inputs: Vec<u64>) -> Result<Vec<u64>, OpError> {
        self.runs.lock().push(self.vertex.name.clone());
        match self.vertex.op.as_str() {
            "waits for ever" => ctx.unless_canceled(std::future::pending()).await,
            "panics" => panic!("on purpose"),
            _ if self.vertex.fails => Err(OpError::user("fails on purpose")),
            _ => Ok(vec![self.vertex.value(&inputs)]),
        }
    }
}

fn cache_map(vertex: &FakeVertex, index: usize) -> (CacheMap, bool) {
    let text = vertex.maps.get(index).unwrap_or(&vertex.op);
    let deps = vertex
        .content
        .iter()
        .map(|content| Dep {
            selector: None,
            content: *content,
        })
        .collect();
    let map = CacheMap {
        digest: Digest::of(text.as_bytes()),
        deps,
        is_local: vertex.is_local,
        explain: String::new(),
        pin: None,
    };
    (map, index + 1 >= vertex.maps.len())
}

/// The plan of a fake build whose result is its last vertex.
pub(crate) fn plan(vertices: &[FakeVertex], runs: &Arc<Mutex<Vec<String>>>) -> Plan<u64> {
    let mut digests: Vec<Digest> = Vec::new();
    let mut steps = Vec::new();
    for vertex in vertices {
        let inputs: Vec<Digest> = vertex.inputs.iter().map(|input| digests[*input]).collect();
        let digest = Digest::of(format!("{} {inputs:?}", vertex.name).as_bytes());
        digests.push(digest);
        steps.push(Step {
            info: Arc::new(VertexInfo {
                digest,
                inputs,
                name: vertex.name.clone(),
                group: None,
            }),
            identity: digest,
            op: Arc::new(FakeOp {
                vertex: vertex.clone(),
                runs: runs.clone(),
            }) as Arc<dyn Op<u64>>,
            ignore_cache: vertex.ignore_cache,
            inputs: vertex.inputs.iter().map(|input| (*input, 0)).collect(),
            height: 0,
        });
    }
    load::measure(&mut steps);
    Plan {
        root: (steps.len() - 1, 0),
        steps,
    }
}

/// What outlives builds.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) results: HashMap<ResultId, u64>,
}

/// A scheduler whose questions are answered one by one, in the order the dice say.
pub(crate) struct Simulation<'a> {
    pub(crate) core: Core<u64>,
    pub(crate) world: &'a mut World,
    pub(crate) open: Vec<Command<u64>>,
    pub(crate) answers: BTreeMap<BuildId, Result<u64, Arc<VertexError>>>,
    /// Names of vertices in the order they ran.
    pub(crate) runs: Vec<String>,
    pub(crate) loads: usize,
    vertices: HashMap<String, FakeVertex>,
    readers: Vec<EventReader>,
}

pub(crate) fn clock() -> Clock {
    let seconds = Mutex::new(0);
    Arc::new(move || {
        *seconds.lock() += 1;
        SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds.lock())
    })
}

impl<'a> Simulation<'a> {
    pub(crate) fn new(world: &'a mut World, max_parallelism: Option<usize>) -> Self {
        let core = Core::new(
            world.store.clone(),
            max_parallelism,
            clock(),
            LogLimits::default(),
        );
        Self {
            core,
            world,
            open: Vec::new(),
            answers: BTreeMap::new(),
            runs: Vec::new(),
            loads: 0,
            vertices: HashMap::new(),
            readers: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, job: u64, vertices: &[FakeVertex]) -> BuildId {
        for vertex in vertices {
            self.vertices.insert(vertex.name.clone(), vertex.clone());
        }
        let stream: Arc<Stream> = Arc::default();
        self.readers.push(EventReader {
            stream: stream.clone(),
        });
        let build = self.core.add(
            plan(vertices, &Arc::default()),
            Owner {
                job,
                group: Arc::new(job),
                stream,
            },
        );
        self.collect();
        build
    }

    pub(crate) fn end(&mut self, build: BuildId) {
        drop(self.core.end(build));
        self.collect();
    }

    fn collect(&mut self) {
        for command in std::mem::take(&mut self.core.commands) {
            match command {
                Command::Answer { build, answer } => {
                    let before = self.answers.insert(build, answer.map(|cached| cached.result));
                    assert!(before.is_none(), "a build is answered once");
                }
                question => self.open.push(question),
            }
        }
    }

    /// Answers one question.
    pub(crate) fn step(&mut self, dice: &mut Dice) {
        let at = dice.roll(self.open.len());
        let event = match self.open.swap_remove(at) {
            Command::CacheMap { node, index, call } => {
                let vertex = &self.vertices[&call.ctx.vertex.name];
                Event::CacheMap {
                    node,
                    answer: Ok(cache_map(vertex, index)),
                }
            }
            Command::Content {
                node, input, result, ..
            } => Event::Content {
                node,
                input,
                answer: Ok(Some(Digest::of(&content(result).to_be_bytes()))),
            },
            Command::Load {
                edge,
                candidates,
                began,
                ..
            } => {
                self.loads += 1;
                let mut tried = Vec::new();
                let mut answer = None;
                for candidate in candidates {
                    match self.world.results.get(&candidate.record.result) {
                        Some(result) => {
                            answer = Some(Loaded {
                                result: *result,
                                candidate,
                                kept: None,
                            });
                        }
                        None => tried.push((candidate.slot, candidate.record.result.clone())),
                    }
                    if answer.is_some() {
                        break;
                    }
                }
                Event::Loaded {
                    edge,
                    answer,
                    tried,
                    began,
                }
            }
            Command::Exec { node, inputs, call } => {
                let vertex = self.vertices[&call.ctx.vertex.name].clone();
                self.runs.push(vertex.name.clone());
                let answer = if call.ctx.cancel.is_cancelled() {
                    Err(OpError::canceled())
                } else if vertex.fails {
                    Err(OpError::user("fails on purpose"))
                } else {
                    let value = vertex.value(&inputs);
                    let id = ResultId::new(format!("{}-{}", vertex.name, self.world.results.len()));
                    self.world.results.insert(id.clone(), value);
                    Ok(vec![(value, Some(id))])
                };
                Event::Ran { node, answer }
            }
            Command::Answer { .. } => unreachable!("answers were taken out"),
        };
        self.core.handle(vec![event]);
        self.collect();
    }

    pub(crate) fn finish(&mut self, dice: &mut Dice) {
        while !self.open.is_empty() {
            self.step(dice);
        }
    }

    pub(crate) fn events(&mut self, reader: usize) -> Vec<Progress> {
        self.readers[reader].take()
    }

    pub(crate) fn close(&mut self, reader: usize) {
        self.readers[reader].stream.close(SystemTime::UNIX_EPOCH);
    }

    pub(crate) fn assert_nothing_held(&self) {
        assert_eq!(self.core.graph.len(), 0, "every vertex is released");
        assert_eq!(self.core.build_count(), 0, "every build is forgotten");
        assert_eq!(self.core.index.len(), 0, "no edge can be found any more");
        assert_eq!(self.core.turns.running(), 0, "nothing counts as running");
    }
}
