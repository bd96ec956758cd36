//! The solver's promises, on chosen and on random graphs, with answers in chosen and in random order.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::graph::BuildId;
use crate::progress::Event;
use crate::report::Outcome;
use crate::simulation::{Dice, FakeVertex, Simulation, World, expected, local, run, source};

/// Runs one build alone: its answer, what ran, and how often something was loaded.
fn build(world: &mut World, vertices: &[FakeVertex], seed: u64) -> (Result<u64, String>, Vec<String>, usize) {
    let mut dice = Dice::new(seed);
    let mut sim = Simulation::new(world, None);
    let id = sim.begin(1, vertices);
    sim.finish(&mut dice);
    let answer = sim
        .answers
        .remove(&id)
        .expect("every build is answered")
        .map_err(|error| error.to_string());
    sim.end(id);
    sim.assert_nothing_held();
    (answer, sim.runs, sim.loads)
}

fn value(vertices: &[FakeVertex]) -> Result<u64, String> {
    Ok(*expected(vertices).last().expect("a build has a vertex"))
}

/// FROM, COPY from the context, two RUNs.
fn dockerfile(bytes: u64, last: &str) -> Vec<FakeVertex> {
    vec![
        source("base"),
        local("context", bytes),
        run("copy", &[(0, false), (1, true)]),
        run("first", &[(2, false)]),
        run(last, &[(3, false)]),
    ]
}

#[test]
fn what_changed_runs_and_nothing_else() {
    let first = dockerfile(1, "last");
    let cases: [(&str, Vec<FakeVertex>, &[&str]); 5] = [
        ("the same again", first.clone(), &["context"]),
        (
            "another context, equal contents",
            dockerfile(6, "last"),
            &["context"],
        ),
        (
            "other contents",
            dockerfile(2, "last"),
            &["copy", "first", "last", "context"],
        ),
        (
            "the last step edited",
            dockerfile(1, "edited"),
            &["context", "edited"],
        ),
        (
            "the base changed",
            [vec![source("other")], first[1..].to_vec()].concat(),
            &["other", "context", "copy", "first", "last"],
        ),
    ];
    for (what, vertices, ran) in cases {
        for seed in 0..20 {
            let mut fresh = World::default();
            build(&mut fresh, &first, 1).0.expect("it builds");
            let (answer, runs, _) = build(&mut fresh, &vertices, seed);
            assert_eq!(answer, value(&vertices), "{what}");
            let runs: BTreeSet<_> = runs
                .iter()
                .map(String::as_str)
                .filter(|name| *name != "base")
                .collect();
            assert_eq!(
                runs,
                BTreeSet::from_iter(ran.iter().copied()),
                "{what}, order {seed}"
            );
        }
    }
}

#[test]
fn the_first_build_runs_everything_and_loads_nothing() {
    let mut world = World::default();
    let vertices = dockerfile(1, "last");
    let (answer, runs, loads) = build(&mut world, &vertices, 3);
    assert_eq!(answer, value(&vertices));
    assert_eq!(runs.len(), vertices.len());
    assert_eq!(loads, 0);
}

#[test]
fn a_full_match_loads_one_record_and_no_input() {
    let mut world = World::default();
    let vertices = [
        source("base"),
        run("a", &[(0, false)]),
        run("b", &[(1, false)]),
        run("c", &[(2, true)]),
    ];
    build(&mut world, &vertices, 1).0.expect("it builds");
    for seed in 0..20 {
        let (answer, runs, loads) = build(&mut world, &vertices, seed);
        assert_eq!((answer, runs, loads), (value(&vertices), vec![], 1));
    }
}

#[test]
fn a_source_is_found_by_its_second_key() {
    let image = |manifest: &str| FakeVertex {
        maps: vec![manifest.into(), "chain".into()],
        op: "image".into(),
        ..source(manifest)
    };
    let with = |manifest: &str| vec![image(manifest), run("a", &[(0, false)]), run("b", &[(1, false)])];
    let mut world = World::default();
    build(&mut world, &with("one"), 1).0.expect("it builds");
    let (answer, runs, _) = build(&mut world, &with("two"), 2);
    assert_eq!(
        (answer, runs),
        (value(&with("two")), vec![]),
        "the same layers under another manifest"
    );
}

#[test]
fn equal_content_of_a_changed_stage_is_a_hit_and_the_next_time_by_definition() {
    // `stage` is edited, what is copied out of it stays the same.
    let stage = |op: &str| FakeVertex {
        op: op.into(),
        ..run(op, &[(0, false)])
    };
    let with = |op: &str| {
        vec![
            source("base"),
            stage(op),
            run("copy", &[(0, false), (1, true)]),
            run("last", &[(2, false)]),
        ]
    };
    let content = |op: &str| expected(&with(op))[1] % 5;
    let other = (0..)
        .map(|n| format!("edited{n}"))
        .find(|op| content(op) == content("stage"))
        .expect("one in five");
    let mut world = World::default();
    build(&mut world, &with("stage"), 1).0.expect("it builds");
    let (answer, runs, _) = build(&mut world, &with(&other), 1);
    assert_eq!(
        (answer, runs),
        (value(&with(&other)), vec![other.clone()]),
        "only the edited stage runs"
    );
    let (_, runs, loads) = build(&mut world, &with(&other), 1);
    assert_eq!(
        (runs, loads),
        (vec![], 1),
        "now the stage itself leads to the copy; it is not even loaded"
    );
}

#[test]
fn a_record_that_is_gone_is_run_again() {
    let mut world = World::default();
    let vertices = dockerfile(1, "last");
    build(&mut world, &vertices, 1).0.expect("it builds");
    world.results.retain(|id, _| !id.as_str().starts_with("last"));
    let (answer, runs, _) = build(&mut world, &vertices, 1);
    assert_eq!(answer, value(&vertices));
    assert_eq!(runs.iter().filter(|name| *name == "last").count(), 1);
    assert!(
        !runs.contains(&"first".to_owned()),
        "its input is still in the cache"
    );
}

#[test]
fn ignoring_the_cache_runs_again_and_files_the_result() {
    let mut world = World::default();
    let mut vertices = dockerfile(1, "last");
    build(&mut world, &vertices, 1).0.expect("it builds");
    vertices[3].ignore_cache = true;
    let (answer, runs, _) = build(&mut world, &vertices, 1);
    assert_eq!(answer, value(&vertices));
    assert!(runs.contains(&"first".to_owned()), "it was asked for fresh");
    assert!(
        runs.contains(&"last".to_owned()),
        "what follows a fresh result has no key to be found by"
    );
    assert!(
        !runs.contains(&"copy".to_owned()),
        "what comes before it is not affected"
    );
    vertices[3].ignore_cache = false;
    let (_, runs, _) = build(&mut world, &vertices, 1);
    assert_eq!(runs, vec!["context"], "the fresh results are in the cache");
}

#[test]
fn the_report_says_which_input_the_cache_did_not_know() {
    let mut world = World::default();
    build(&mut world, &dockerfile(1, "last"), 1).0.expect("it builds");
    let mut sim = Simulation::new(&mut world, None);
    let id = sim.begin(1, &dockerfile(2, "last"));
    sim.finish(&mut Dice::new(1));
    let report = sim.core.report(1);
    let of = |name: &str| {
        report
            .iter()
            .find(|step| step.vertex.name == name)
            .expect("it is reported")
    };
    assert_eq!(of("copy").outcome, Outcome::Ran);
    let inputs: Vec<_> = of("copy")
        .inputs
        .iter()
        .map(|input| (input.is_matched, input.content.is_some()))
        .collect();
    assert_eq!(
        inputs,
        [(true, false), (false, true)],
        "the base is known, the contents are not"
    );
    assert!(!of("first").inputs[0].is_matched);
    assert_eq!(
        report.first().map(|step| step.inputs.len()),
        Some(0),
        "sources come first"
    );
    sim.end(id);
}

#[test]
fn a_failure_names_its_vertex_and_stops_what_follows() {
    let mut world = World::default();
    let mut vertices = dockerfile(1, "last");
    vertices[3].fails = true;
    let mut sim = Simulation::new(&mut world, None);
    let id = sim.begin(1, &vertices);
    sim.finish(&mut Dice::new(1));
    let error = sim.answers.remove(&id).expect("answered").expect_err("it fails");
    assert_eq!(
        (error.name.as_str(), error.to_string().as_str()),
        ("first", "fails on purpose")
    );
    assert!(!sim.runs.contains(&"last".to_owned()));
    sim.end(id);
    sim.assert_nothing_held();
}

#[test]
fn vertices_that_differ_only_in_name_run_once_for_both() {
    let mut world = World::default();
    let client = |name: &str| {
        let copy = FakeVertex {
            op: "copy".into(),
            ..run(&format!("copy {name}"), &[(0, false), (1, true)])
        };
        let last = FakeVertex {
            op: "last".into(),
            ..run(&format!("last {name}"), &[(2, false)])
        };
        vec![source("base"), local(&format!("context {name}"), 7), copy, last]
    };
    for seed in 0..50 {
        let mut dice = Dice::new(seed);
        let mut sim = Simulation::new(&mut world, None);
        let builds: Vec<_> = (0..4)
            .map(|n| (sim.begin(n, &client(&n.to_string())), n))
            .collect();
        sim.finish(&mut dice);
        for (build, n) in &builds {
            let answer = sim
                .answers
                .remove(build)
                .expect("answered")
                .map_err(|error| error.to_string());
            assert_eq!(answer, value(&client(&n.to_string())));
        }
        for name in ["copy", "last"] {
            let count = sim.runs.iter().filter(|run| run.starts_with(name)).count();
            assert!(count <= 1, "{name} ran {count} times, order {seed}");
        }
        for (build, _) in builds {
            sim.end(build);
        }
        sim.assert_nothing_held();
        drop(sim);
        if seed % 2 == 0 {
            world = World::default();
        }
    }
}

#[test]
fn a_followed_run_survives_the_end_of_the_build_it_was_started_for() {
    let client = |name: &str| {
        let step = FakeVertex {
            op: "step".into(),
            ..run(&format!("step {name}"), &[(0, false)])
        };
        vec![source("base"), step]
    };
    let mut world = World::default();
    let mut dice = Dice::new(5);
    let mut sim = Simulation::new(&mut world, None);
    let (one, two) = (sim.begin(1, &client("one")), sim.begin(2, &client("two")));
    while !sim.runs.contains(&"base".to_owned()) {
        sim.step(&mut dice);
    }
    sim.end(one);
    sim.finish(&mut dice);
    assert!(sim.answers.remove(&two).expect("answered").is_ok());
    assert_eq!(sim.runs.iter().filter(|name| name.starts_with("step")).count(), 1);
    sim.end(two);
    sim.assert_nothing_held();
}

#[test]
fn jobs_take_turns_when_there_is_room_for_one() {
    let many = |job: &str| {
        let mut vertices: Vec<_> = (0..6).map(|n| source(&format!("{job} {n}"))).collect();
        vertices.push(run(
            &format!("{job} end"),
            &(0..6).map(|n| (n, false)).collect::<Vec<_>>(),
        ));
        vertices
    };
    let mut world = World::default();
    let mut dice = Dice::new(1);
    let mut sim = Simulation::new(&mut world, Some(1));
    let (a, b) = (sim.begin(1, &many("a")), sim.begin(2, &many("b")));
    while sim.runs.len() < 8 {
        assert!(sim.core.turns.running() <= 1);
        sim.step(&mut dice);
    }
    for job in ["a", "b"] {
        let done = sim.runs.iter().filter(|name| name.starts_with(job)).count();
        assert!((3..=5).contains(&done), "job {job} had {done} of 8 turns");
    }
    sim.finish(&mut dice);
    sim.end(a);
    sim.end(b);
    sim.assert_nothing_held();
}

/// `count` steps of which none waits for another, and one that waits for all.
fn wide(job: &str, count: usize) -> Vec<FakeVertex> {
    let mut vertices: Vec<_> = (0..count).map(|n| source(&format!("{job} {n}"))).collect();
    let all: Vec<_> = (0..count).map(|n| (n, false)).collect();
    vertices.push(run(&format!("{job} end"), &all));
    vertices
}

#[test]
fn a_build_of_500_steps_does_not_starve_one_of_3() {
    for room in [1, 4] {
        let mut world = World::default();
        let mut dice = Dice::new(3);
        let mut sim = Simulation::new(&mut world, Some(room));
        let large = sim.begin(1, &wide("large", 500));
        while sim.runs.len() < 20 {
            sim.step(&mut dice);
        }
        let chain = [
            source("small 0"),
            run("small 1", &[(0, false)]),
            run("small 2", &[(1, false)]),
        ];
        let small = sim.begin(2, &chain);
        let before = sim.runs.len();
        while !sim.answers.contains_key(&small) {
            sim.step(&mut dice);
        }
        let runs = &sim.runs[before..];
        let of_large = runs.iter().filter(|name| name.starts_with("large")).count();
        assert_eq!(runs.len() - of_large, 3);
        // One at most for each place, each time the small one is not ready.
        assert!(
            of_large <= 5 * room,
            "{of_large} steps of the large one with room for {room}"
        );
        sim.finish(&mut dice);
        sim.end(large);
        sim.end(small);
        sim.assert_nothing_held();
    }
}

#[test]
fn builds_that_keep_coming_do_not_starve_one_that_is_there() {
    let mut world = World::default();
    let mut dice = Dice::new(4);
    let mut sim = Simulation::new(&mut world, Some(1));
    let first = sim.begin(0, &wide("first", 10));
    let (mut next, mut open) = (1, Vec::new());
    while !sim.answers.contains_key(&first) {
        // There are always three that have had no turn.
        while open.len() < 3 {
            open.push(sim.begin(next, &[source(&format!("new {next}"))]));
            next += 1;
        }
        sim.step(&mut dice);
        let (done, still): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|build| sim.answers.contains_key(build));
        done.into_iter().for_each(|build| sim.end(build));
        open = still;
        assert!(sim.runs.len() < 200, "the first build is never done");
    }
    let others = sim.runs.iter().filter(|name| name.starts_with("new")).count();
    assert!(
        others <= 4 * 11 + 4,
        "{others} others had a turn before the first was done"
    );
    sim.finish(&mut dice);
    open.into_iter().chain([first]).for_each(|build| sim.end(build));
    sim.assert_nothing_held();
}

#[test]
fn a_cached_build_shows_every_vertex_as_cached() {
    let mut world = World::default();
    let vertices = [source("base"), run("a", &[(0, false)]), run("b", &[(1, false)])];
    build(&mut world, &vertices, 1).0.expect("it builds");
    let mut sim = Simulation::new(&mut world, None);
    let id = sim.begin(1, &vertices);
    sim.finish(&mut Dice::new(1));
    let shown: Vec<_> = sim
        .events(0)
        .into_iter()
        .map(|event| match event {
            Event::Vertex(event) => {
                let mark = match (event.started, event.completed, event.cached) {
                    (None, None, false) => "announced",
                    (Some(_), None, false) => "started",
                    (Some(_), None, true) => "started cached",
                    (Some(_), Some(_), false) => "completed",
                    (Some(_), Some(_), true) => "cached",
                    other => panic!("not a state of a vertex: {other:?}"),
                };
                format!("{} {mark}", event.vertex.name)
            }
            other => panic!("nothing else is shown: {other:?}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "base announced",
            "a announced",
            "b announced",
            "base started",
            "base completed",
            "a cached",
            "b started cached",
            "b cached",
        ]
    );
    sim.end(id);
}

#[test]
fn what_is_open_at_the_end_is_shown_as_canceled() {
    let mut world = World::default();
    let mut sim = Simulation::new(&mut world, None);
    let id = sim.begin(1, &[source("base")]);
    sim.step(&mut Dice::new(1));
    sim.events(0);
    sim.close(0);
    let last = sim.events(0);
    assert!(
        matches!(&last[..], [Event::Vertex(event)] if event.error.as_deref() == Some("context canceled"))
    );
    sim.end(id);
    sim.finish(&mut Dice::new(1));
    sim.assert_nothing_held();
}

/// A graph of sources and steps; names repeat now and then, so that some vertices are equal.
fn random_graph(dice: &mut Dice, flavour: usize) -> Vec<FakeVertex> {
    let sources = 1 + dice.roll(3);
    let mut vertices = Vec::new();
    for n in 0..sources {
        vertices.push(match dice.roll(3) {
            0 => local(&format!("local{n} of {flavour}"), dice.roll(4) as u64),
            1 => FakeVertex {
                maps: vec![format!("m{n}"), format!("chain{}", dice.roll(2))],
                op: format!("i{n}"),
                ..source(&format!("i{n}"))
            },
            _ => source(&format!("s{n}")),
        });
    }
    // An image with two keys gives what its chain says.
    for vertex in &mut vertices {
        if vertex.maps.len() == 2 {
            vertex.op = vertex.maps[1].clone();
            vertex.name = format!("{} {}", vertex.maps[0], vertex.maps[1]);
            vertex.maps[0] = vertex.name.clone();
        }
    }
    for n in 0..dice.roll(12) + 1 {
        let count = 1 + dice.roll(3);
        let inputs: Vec<_> = (0..count)
            .map(|_| (dice.roll(vertices.len()), dice.chance(40)))
            .collect();
        let op = format!("op{}", dice.roll(6));
        let mut vertex = run(&op, &inputs);
        vertex.op = format!("{op} {:?}", vertex.content);
        vertex.name = if dice.chance(50) {
            vertex.op.clone()
        } else {
            format!("{} variant {n} {flavour}", vertex.op)
        };
        vertices.push(vertex);
    }
    // Names say everything that matters, for the stand-in looks vertices up by them.
    for vertex in &mut vertices {
        vertex.ignore_cache = dice.chance(8);
        vertex.name = format!(
            "{} bytes {} ignore {}",
            vertex.name, vertex.bytes, vertex.ignore_cache
        );
    }
    vertices
}

/// The vertices the result depends on, by the key under which equal ones are one.
fn needed(vertices: &[FakeVertex]) -> BTreeSet<usize> {
    let mut open = vec![vertices.len() - 1];
    let mut needed = BTreeSet::new();
    while let Some(at) = open.pop() {
        if needed.insert(at) {
            open.extend(vertices[at].inputs.iter().copied());
        }
    }
    needed
}

fn prune(vertices: &[FakeVertex]) -> Vec<FakeVertex> {
    let needed: Vec<usize> = needed(vertices).into_iter().collect();
    let place = |old: &usize| {
        needed
            .iter()
            .position(|at| at == old)
            .expect("an input of what is needed is needed")
    };
    needed
        .iter()
        .map(|at| FakeVertex {
            inputs: vertices[*at].inputs.iter().map(place).collect(),
            ..vertices[*at].clone()
        })
        .collect()
}

#[test]
fn any_order_gives_the_same_answer_and_runs_nothing_twice() {
    for seed in 0..400 {
        let graph = prune(&random_graph(&mut Dice::new(seed), 0));
        for order in 0..4 {
            let mut world = World::default();
            let (answer, runs, _) = build(&mut world, &graph, order);
            assert_eq!(answer, value(&graph), "graph {seed}, order {order}");
            assert!(
                runs.len() <= graph.len(),
                "graph {seed}: {runs:?} for {} vertices",
                graph.len()
            );
        }
    }
}

#[test]
fn a_second_build_runs_only_what_must_not_be_cached() {
    for seed in 0..400 {
        let mut graph = prune(&random_graph(&mut Dice::new(seed), 0));
        for vertex in &mut graph {
            vertex.ignore_cache = false;
        }
        let has_local_key_only = |at: usize| -> bool {
            // A step that sees a local source by definition only has no key that lasts.
            fn lasting(graph: &[FakeVertex], at: usize) -> bool {
                let vertex = &graph[at];
                !vertex.is_local
                    && vertex
                        .inputs
                        .iter()
                        .zip(&vertex.content)
                        .all(|(input, content)| *content || lasting(graph, *input))
            }
            !lasting(&graph, at)
        };
        let mut world = World::default();
        build(&mut world, &graph, seed).0.expect("it builds");
        let allowed: BTreeSet<String> = (0..graph.len())
            .filter(|at| has_local_key_only(*at))
            .map(|at| graph[at].name.clone())
            .collect();
        for order in 0..3 {
            let (answer, runs, _) = build(&mut world, &graph, order);
            assert_eq!(answer, value(&graph), "graph {seed}");
            for name in runs {
                assert!(allowed.contains(&name), "graph {seed}: {name} ran again");
            }
        }
    }
}

#[test]
fn builds_that_share_cancel_and_repeat_never_disturb_each_other() {
    let mut canceled = 0;
    for seed in 0..600 {
        let mut dice = Dice::new(seed);
        let mut world = World::default();
        let graphs: Vec<_> = (0..3)
            .map(|flavour| {
                prune(&random_graph(
                    &mut Dice::new(seed / 3 * 7 + flavour / 2),
                    flavour as usize / 2,
                ))
            })
            .collect();
        let room = if dice.chance(50) {
            None
        } else {
            Some(1 + dice.roll(2))
        };
        let mut sim = Simulation::new(&mut world, room);
        let mut open: Vec<(BuildId, usize)> = Vec::new();
        let mut begun = 0;
        loop {
            if begun < 8 && (open.is_empty() || dice.chance(15)) {
                let which = dice.roll(graphs.len());
                open.push((sim.begin(begun, &graphs[which]), which));
                begun += 1;
            } else if dice.chance(4) && !open.is_empty() {
                let (build, which) = open.swap_remove(dice.roll(open.len()));
                if let Some(answer) = sim.answers.remove(&build) {
                    assert_eq!(
                        answer.map_err(|error| error.to_string()),
                        value(&graphs[which]),
                        "seed {seed}"
                    );
                } else {
                    canceled += 1;
                }
                sim.end(build);
            } else if !sim.open.is_empty() {
                sim.step(&mut dice);
            } else if begun == 8 {
                break;
            }
        }
        for (build, which) in open {
            let answer = sim
                .answers
                .remove(&build)
                .unwrap_or_else(|| panic!("seed {seed}: a build was forgotten"));
            assert_eq!(
                answer.map_err(|error| error.to_string()),
                value(&graphs[which]),
                "seed {seed}"
            );
            sim.end(build);
        }
        sim.finish(&mut dice);
        sim.assert_nothing_held();
    }
    assert!(
        canceled > 50,
        "only {canceled} builds were cancelled; the test would prove little"
    );
}

#[test]
fn a_cached_build_of_many_vertices_asks_for_little() {
    let mut vertices = vec![source("base")];
    for n in 0..1500 {
        vertices.push(run(&format!("step {n}"), &[(n, false)]));
    }
    let mut world = World::default();
    build(&mut world, &vertices, 1).0.expect("it builds");
    let began = std::time::Instant::now();
    let (answer, runs, loads) = build(&mut world, &vertices, 1);
    let took = began.elapsed();
    assert_eq!((answer, runs, loads), (value(&vertices), vec![], 1));
    eprintln!("1,500 cached vertices: {took:?}");
}

mod through_the_door;
