//! A definition found in an input, solved as a part of the same build.
//!
//! ```text
//! input's file ─▶ read ─▶ NestedBuilds::check ─▶ Nesting ─▶ NestedBuilds::solve ─▶ its result
//!                         (the session's build)   └ no definition that waits for itself
//! ```
//!
//! What is in the file is a stranger's definition as any other: checked for its form, for what the build may do and for its
//! sources by whoever checks those of the build. Its steps are shown, held and called off with the build.
//!
//! It takes no turn among the steps that may run at once: it does nothing but wait for others.
use super::{cache_error, keyed::Run};
use crate::{Session, Worker, meter::SinkMeter};
use async_trait::async_trait;
use cache::ImmutableRef;
use llb::{Definition, Vertex, op::BuildOp};
use oci::Digest;
use parking_lot::Mutex;
use solver::{OpContext, OpError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tree::RootPath;

/// The input that holds the definition.
const INPUT: &str = "buildkit.llb.definition";
/// The file in it, unless an option names another.
const FILE: &str = INPUT;
/// The option that does.
const FILE_OPTION: &str = "llbbuild.filename";
/// Bytes of a definition: twice the largest op.
const MAX_BYTES: u64 = 64 << 20;
/// Builds inside each other.
const MAX_DEPTH: usize = 16;

/// How a build solves further definitions; its session has one where strangers' definitions are taken.
#[async_trait]
pub trait NestedBuilds: Send + Sync {
    /// Checks a definition, and puts other sources in place where the rules of the build say so.
    ///
    /// # Errors
    /// It is none, or asks for what the build may not do.
    async fn check(&self, definition: Definition) -> Result<Definition, OpError>;

    /// Solves it within the build; `None` is scratch.
    ///
    /// # Errors
    /// A step failed, or the build has ended.
    async fn solve(&self, definition: &Definition) -> Result<Option<ImmutableRef>, OpError>;
}

/// The run of a build op.
pub(super) struct BuildRun {
    worker: Arc<Worker>,
    vertex: Digest,
    op: BuildOp,
}

impl BuildRun {
    pub(super) fn new(worker: Arc<Worker>, vertex: &Vertex, op: &BuildOp) -> Result<BuildRun, OpError> {
        if op.builder.is_some() {
            return Err(OpError::user("only LLB builder is currently allowed"));
        }
        for option in op.attrs.keys() {
            if option != FILE_OPTION {
                return Err(OpError::user(format!(
                    "a build op with the unknown option {option:?}"
                )));
            }
        }
        Ok(BuildRun {
            worker,
            vertex: vertex.digest,
            op: op.clone(),
        })
    }

    /// The definition's bytes.
    async fn read(&self, ctx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<u8>, OpError> {
        let input = self
            .op
            .inputs
            .get(INPUT)
            .ok_or_else(|| OpError::user(format!("no llb definition input {INPUT} found")))?;
        let input = input.and_then(|index| inputs.get(index as usize));
        let input =
            input.ok_or_else(|| OpError::user(format!("the input {INPUT} of a build op is empty")))?;
        let file = self
            .op
            .attrs
            .get(FILE_OPTION)
            .map_or(FILE, String::as_str)
            .to_owned();
        let meter = SinkMeter::shared(ctx.progress.clone());
        let view = ctx
            .unless_canceled(input.view(&meter))
            .await?
            .map_err(cache_error)?;
        let reading = tokio::task::spawn_blocking(move || {
            let path = RootPath::clean(file.as_bytes()).map_err(OpError::user)?;
            let read = view.read_small(&path, MAX_BYTES).map_err(|cause| Unreadable {
                file: file.clone(),
                cause,
            });
            let read = read.map_err(OpError::user)?;
            read.ok_or_else(|| {
                OpError::user(format!("{file} is not a regular file of the input of a build op"))
            })
        });
        reading.await.map_err(|_| OpError::canceled())?
    }
}

/// The file of a definition could not be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the definition in {file}: {cause}")]
struct Unreadable {
    file: String,
    cause: cache::layer::LayerError,
}

#[async_trait]
impl Run for BuildRun {
    async fn run(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let session = Session::of(ctx)?;
        let nested = session.nested_builds().cloned();
        let nested = nested.ok_or_else(|| OpError::user("build ops are solved by a daemon only"))?;
        let bytes = self.read(ctx, &inputs).await?;
        let found = Definition::from_bytes(&bytes).map_err(OpError::user)?;
        drop(bytes);
        let solving = async {
            let definition = nested.check(found).await?;
            let graph = definition.to_graph().map_err(OpError::user)?;
            let inner = graph
                .vertices
                .iter()
                .filter(|vertex| matches!(vertex.op, llb::Op::Build(_)));
            let inner = inner.map(|vertex| vertex.digest).collect();
            let _nested = self.worker.nesting.enter(self.vertex, inner)?;
            nested.solve(&definition).await
        };
        let result = ctx.unless_canceled(solving).await??;
        Ok(vec![result.unwrap_or_else(|| self.worker.cache.scratch())])
    }

    fn only_waits(&self) -> bool {
        true
    }
}

/// Which build ops wait for which others, over all builds: a definition that leads to itself would wait for ever.
#[derive(Default)]
pub(crate) struct Nesting(Arc<Mutex<Waits>>);

/// By build op: what its definitions hold, each time it runs.
type Waits = HashMap<Digest, Vec<Arc<HashSet<Digest>>>>;

/// One build op that runs, until it is dropped.
struct Entered {
    waits: Arc<Mutex<Waits>>,
    op: Digest,
    inner: Arc<HashSet<Digest>>,
}

impl Nesting {
    /// Notes that `op` waits for the build ops `inner`.
    fn enter(&self, op: Digest, inner: HashSet<Digest>) -> Result<Entered, OpError> {
        let mut waits = self.0.lock();
        let inner = Arc::new(inner);
        waits.entry(op).or_default().push(inner.clone());
        let entered = Entered {
            waits: self.0.clone(),
            op,
            inner,
        };
        let leads_back = reaches(&waits, op);
        let depth = depth(&waits, op);
        // What is dropped on the way out locks it.
        drop(waits);
        if leads_back {
            return Err(OpError::user("a build op whose definition leads back to it"));
        }
        if depth > MAX_DEPTH {
            return Err(OpError::user(format!(
                "more than {MAX_DEPTH} builds inside each other"
            )));
        }
        Ok(entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut waits = self.waits.lock();
        if let Some(all) = waits.get_mut(&self.op) {
            all.retain(|one| !Arc::ptr_eq(one, &self.inner));
            if all.is_empty() {
                waits.remove(&self.op);
            }
        }
    }
}

/// Whether `op` waits for itself.
fn reaches(waits: &Waits, op: Digest) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![op];
    while let Some(next) = open.pop() {
        for inner in waits
            .get(&next)
            .into_iter()
            .flatten()
            .flat_map(|inner| inner.iter())
        {
            if *inner == op {
                return true;
            }
            if waits.contains_key(inner) && seen.insert(*inner) {
                open.push(*inner);
            }
        }
    }
    false
}

/// How many running build ops wait for each other down to `op`, which is no part of a circle or the newest in it.
fn depth(waits: &Waits, op: Digest) -> usize {
    let mut seen = HashSet::from([op]);
    let mut level = vec![op];
    let mut depth = 0;
    while !level.is_empty() {
        depth += 1;
        let outer = waits.iter().filter(|(outer, all)| {
            !seen.contains(*outer) && all.iter().any(|inner| level.iter().any(|op| inner.contains(op)))
        });
        let outer: Vec<Digest> = outer.map(|(outer, _)| *outer).collect();
        seen.extend(outer.iter().copied());
        level = outer;
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(name: usize) -> Digest {
        Digest::of(name.to_string().as_bytes())
    }

    fn text<T>(result: Result<T, OpError>) -> String {
        result.map(drop).expect_err("refused").to_string()
    }

    #[test]
    fn no_definition_waits_for_itself() {
        let nesting = Nesting::default();
        assert!(text(nesting.enter(op(1), [op(1)].into())).contains("leads back"));
        let one = nesting.enter(op(1), [op(2)].into()).expect("it may wait");
        let two = nesting.enter(op(2), [op(3)].into()).expect("it may wait");
        assert!(text(nesting.enter(op(3), [op(1)].into())).contains("leads back"));
        drop(one);
        let three = nesting
            .enter(op(3), [op(1)].into())
            .expect("nobody waits for it now");
        drop((two, three));
        assert!(nesting.0.lock().is_empty());
    }

    #[test]
    fn builds_inside_each_other_are_counted() {
        let nesting = Nesting::default();
        let all: Vec<_> = (0..MAX_DEPTH)
            .map(|at| {
                nesting
                    .enter(op(at), [op(at + 1)].into())
                    .expect("deep, not too deep")
            })
            .collect();
        assert!(text(nesting.enter(op(MAX_DEPTH), HashSet::new())).contains("inside each other"));
        assert!(
            nesting.enter(op(99), HashSet::new()).is_ok(),
            "beside them there is room"
        );
        drop(all);
        assert!(nesting.enter(op(MAX_DEPTH), HashSet::new()).is_ok());
    }
}
