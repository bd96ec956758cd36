//! What a build did, in a few lines: what ran, what the cache served, how long it took.
use super::model::Model;
use super::text::{clip, plain_name};
use std::time::{Duration, SystemTime};

/// The figures of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps of the Dockerfile that ran.
    pub ran: usize,
    /// Steps of the Dockerfile the cache served.
    pub cached: usize,
    /// From the first step's beginning to `now`.
    pub took: Duration,
    /// The step that took longest, if it is worth a word.
    pub slowest: Option<(String, Duration)>,
    /// Warnings shown.
    pub warnings: usize,
}

/// Shorter steps are not worth a word.
const WORTH_NAMING: Duration = Duration::from_secs(1);

impl Summary {
    /// Counts.
    pub fn of(model: &Model, now: SystemTime) -> Summary {
        let mut summary = Summary::default();
        for index in model.visible() {
            let step = model.step(index);
            summary.warnings += step.warnings.len();
            if !is_of_dockerfile(&step.name) || step.error.is_some() {
                continue;
            }
            if step.cached {
                summary.cached += 1;
                continue;
            }
            summary.ran += 1;
            let took = step.times.total(now);
            if took
                > summary
                    .slowest
                    .as_ref()
                    .map_or(WORTH_NAMING, |(_, longest)| *longest)
            {
                summary.slowest = Some((plain_name(&step.name), took));
            }
        }
        summary.took = model
            .began()
            .and_then(|began| now.duration_since(began).ok())
            .unwrap_or_default();
        summary
    }

    /// `2 steps ran, 5 came from the cache, 1.2s`
    pub fn sentence(&self) -> String {
        let steps = |count: usize| {
            if count == 1 {
                "1 step".to_owned()
            } else {
                format!("{count} steps")
            }
        };
        let mut text = format!(
            "{} ran, {} came from the cache, {:.1}s",
            steps(self.ran),
            self.cached,
            self.took.as_secs_f64()
        );
        if let Some((name, took)) = &self.slowest {
            text.push_str(&format!(
                " (longest: {} {:.1}s)",
                clip(name, 40),
                took.as_secs_f64()
            ));
        }
        text
    }
}

/// Steps of the Dockerfile are named `[stage 2/4] RUN …` or `[2/4] RUN …`.
fn is_of_dockerfile(name: &str) -> bool {
    let inside = name
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or("", |(inside, _)| inside);
    let place = inside.rsplit(' ').next().and_then(|word| word.split_once('/'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    place.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_of_the_dockerfile_count() {
        for (name, expected) in [
            ("[2/4] RUN make", true),
            ("[base 1/2] FROM busybox", true),
            ("[linux/amd64 base 3/10] COPY a/b c", true),
            ("[internal] load build definition from Dockerfile", false),
            (
                "[context busybox] load metadata for docker.io/library/busybox",
                false,
            ),
            (
                "[auth] library/busybox:pull token for registry-1.docker.io",
                false,
            ),
            ("exporting to image", false),
            ("", false),
        ] {
            assert_eq!(is_of_dockerfile(name), expected, "{name}");
        }
    }
}
