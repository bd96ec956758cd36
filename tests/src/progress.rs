//! Which steps ran and which came from the cache, from `--progress=rawjson`.
use serde::Deserialize;
use std::collections::BTreeMap;

/// The steps of one build that belong to its Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Names of those that ran, in the order they began.
    pub ran: Vec<String>,
    /// Names of those that came from the cache.
    pub cached: Vec<String>,
    /// Everything else the build showed, logs included.
    pub logs: String,
}

#[derive(Deserialize)]
struct Update {
    #[serde(default)]
    vertexes: Vec<Vertex>,
    #[serde(default)]
    logs: Vec<Log>,
}

#[derive(Deserialize)]
struct Vertex {
    digest: String,
    name: String,
    #[serde(default)]
    started: Option<String>,
    #[serde(default)]
    cached: bool,
}

#[derive(Deserialize)]
struct Log {
    data: String,
}

impl Steps {
    /// Reads the lines that are JSON updates; others are left out.
    pub fn read(stderr: &str) -> Steps {
        let mut order: Vec<String> = Vec::new();
        let mut vertexes: BTreeMap<String, (String, bool, bool)> = BTreeMap::new();
        let mut steps = Steps::default();
        for update in stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Update>(line).ok())
        {
            for vertex in update.vertexes {
                if !vertexes.contains_key(&vertex.digest) {
                    order.push(vertex.digest.clone());
                }
                let entry = vertexes
                    .entry(vertex.digest)
                    .or_insert((vertex.name, false, false));
                entry.1 |= vertex.started.is_some();
                entry.2 |= vertex.cached;
            }
            for log in update.logs {
                let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &log.data);
                steps
                    .logs
                    .push_str(&String::from_utf8_lossy(&decoded.unwrap_or_default()));
            }
        }
        for digest in order {
            let (name, started, cached) = &vertexes[&digest];
            let step = name.strip_prefix('[').filter(|name| {
                let inside = name.split(']').next().unwrap_or_default();
                inside.contains('/') && !inside.contains("internal") && !inside.contains("context ")
            });
            match step {
                Some(name) if name.contains("] FROM ") => {}
                Some(_) if *cached => steps.cached.push(name.clone()),
                Some(_) if *started => steps.ran.push(name.clone()),
                _ => {}
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_everything_else() {
        let lines = r#"{"vertexes":[{"digest":"a","name":"[internal] load build definition"},{"digest":"b","name":"[2/3] RUN x"}]}
not json
{"vertexes":[{"digest":"b","name":"[2/3] RUN x","started":"t"},{"digest":"c","name":"[3/3] COPY a b","cached":true}],"logs":[{"data":"aGk="}]}
{"vertexes":[{"digest":"d","name":"[1/3] FROM x","started":"t"},{"digest":"e","name":"exporting to oci","started":"t"}]}"#;
        let steps = Steps::read(lines);
        assert_eq!(steps.ran, ["[2/3] RUN x"]);
        assert_eq!(steps.cached, ["[3/3] COPY a b"]);
        assert_eq!(steps.logs, "hi");
    }
}
