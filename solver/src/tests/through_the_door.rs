//! The same through [`crate::Solver`], with tasks.

use super::*;
use crate::job::{Holdings, Options, Solver};
use crate::load::Plan;
use crate::simulation::plan;
use crate::{Op, OpError, Ops};
use async_trait::async_trait;
use keys::{MemoryStore, ResultId};
use std::collections::HashMap;

#[derive(Default)]
struct Kept(Mutex<HashMap<ResultId, u64>>);

#[async_trait]
impl Ops<u64> for Kept {
    fn op(&self, _: &llb::Vertex) -> Result<Arc<dyn Op<u64>>, OpError> {
        Err(OpError::internal("plans are made by the tests"))
    }

    async fn load(&self, id: &ResultId) -> Result<Option<u64>, OpError> {
        Ok(self.0.lock().get(id).copied())
    }

    async fn save(&self, result: &u64) -> Result<Option<ResultId>, OpError> {
        let mut kept = self.0.lock();
        let id = ResultId::new(kept.len().to_string());
        kept.insert(id.clone(), *result);
        Ok(Some(id))
    }
}

fn solver() -> Solver<u64> {
    Solver::new(
        Arc::new(Kept::default()),
        Arc::new(MemoryStore::new()),
        Options::default(),
    )
}

fn counted(vertices: &[FakeVertex]) -> (Plan<u64>, Arc<Mutex<Vec<String>>>) {
    let runs: Arc<Mutex<Vec<String>>> = Arc::default();
    (plan(vertices, &runs), runs)
}

#[tokio::test]
async fn the_second_build_runs_only_the_context() {
    let solver = solver();
    for (number, ran) in [(0, 5), (1, 1)] {
        let vertices = dockerfile(1, "last");
        let (plan, runs) = counted(&vertices);
        let job = solver.job(number.to_string(), Arc::new(()));
        let result = job.solve(plan).await.map_err(|error| format!("{error:?}"));
        assert_eq!(result.map(|cached| cached.result), value(&vertices));
        assert_eq!(runs.lock().len(), ran);
        job.discard().await;
        assert_eq!(solver.holdings(), Holdings::default());
    }
}

#[tokio::test]
async fn a_discarded_job_stops_its_ops_and_leaves_nothing() {
    let solver = solver();
    let (plan, runs) = counted(&[source("waits for ever")]);
    let job = Arc::new(solver.job("one", Arc::new(())));
    let mut events = job.progress();
    let running = tokio::spawn({
        let job = job.clone();
        async move { job.solve(plan).await.map(|cached| cached.result) }
    });
    while runs.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    running.abort();
    assert!(running.await.is_err_and(|error| error.is_cancelled()));
    Arc::into_inner(job).expect("the task is gone").discard().await;
    assert_eq!(solver.holdings(), Holdings::default());
    let mut last = None;
    while let Some(more) = events.next().await {
        last = more.into_iter().next_back().or(last);
    }
    assert!(matches!(last, Some(Event::Vertex(event)) if event.error.as_deref() == Some("context canceled")));
}

#[tokio::test]
async fn an_op_that_panics_fails_its_build_only() {
    let solver = solver();
    let (plan, _) = counted(&[source("panics")]);
    let job = solver.job("one", Arc::new(()));
    let error = job
        .solve(plan)
        .await
        .expect_err("it panics")
        .expect("the vertex failed");
    assert_eq!(error.to_string(), "the op panicked: on purpose");
    let (plan, _) = counted(&[source("fine")]);
    assert!(job.solve(plan).await.is_ok());
    job.discard().await;
    assert_eq!(solver.holdings(), Holdings::default());
}

#[tokio::test]
async fn a_cached_build_of_many_vertices_is_quick() {
    let mut vertices = vec![source("base")];
    for n in 0..1500 {
        vertices.push(run(&format!("step {n}"), &[(n, false)]));
    }
    let solver = solver();
    for _ in 0..2 {
        let (plan, _) = counted(&vertices);
        let job = solver.job("many", Arc::new(()));
        let began = std::time::Instant::now();
        let result = job.solve(plan).await.map_err(|error| format!("{error:?}"));
        eprintln!("1,500 vertices: {:?}", began.elapsed());
        assert_eq!(result.map(|cached| cached.result), value(&vertices));
        job.discard().await;
    }
}
