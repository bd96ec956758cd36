//! Named contexts: `--build-context name=…` stands in for a stage or an image of that name.
//!
//! | value | becomes |
//! |---|---|
//! | `docker-image://ref` | that image; `docker-image://scratch` nothing at all |
//! | `oci-layout://store@digest` | an image in a layout the client has |
//! | `local:name` | a directory of the client, narrowed to what is copied from it |
//! | git and http addresses | that repository or file |
//! | `input:name` | a definition that was handed in |

use llb::state::{Constraints, HttpSource, ImageSource, LocalSource, OciLayoutSource, Promise, State};
use oci::{Digest, ImageConfig, Platform, Reference};

use crate::context::without_secrets;
use crate::error::Error;
use crate::gateway::{ImagePlace, ImageRequest, ResolvedImage};
use crate::lower::env::{self, Env};
use crate::metadata::{Known, Question};
use crate::options::Options;
use crate::remote::GitRef;

/// A named context that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The name it stands in for.
    name: String,
    /// The name as it was given, perhaps with `::platform`.
    key: String,
    input: String,
    platform: Platform,
}

/// A file system and what an image config says of it.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) env: Env,
    pub(crate) dir: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) image: Option<ImageConfig>,
    /// A local directory whose wanted paths are not known yet.
    pub(crate) local: Option<PendingLocal>,
}

/// A local directory whose wanted paths are not known yet.
#[derive(Debug)]
pub(crate) struct PendingLocal {
    source: LocalSource,
    name: String,
    promise: Promise,
}

impl PendingLocal {
    /// Says which paths are wanted; none means all.
    pub(crate) fn keep(self, follow_paths: Vec<String>) {
        let source = LocalSource {
            follow_paths,
            ..self.source
        };
        self.promise
            .keep(source.state(Constraints::default().named(self.name)));
    }
}

/// The named context that stands in for `name`, for this platform first.
pub(crate) fn find(options: &Options, name: &str, platform: &Platform) -> Result<Option<Named>, Error> {
    if options.named_contexts.is_empty() || matches!(name.to_lowercase().as_str(), "scratch" | "context") {
        return Ok(None);
    }
    let reference = Reference::parse_normalized(name).map_err(|error| {
        Error::invalid(format!(
            "{name:?} cannot be looked up among the named contexts: {error}"
        ))
    })?;
    let familiar = reference.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
    let found = [format!("{name}::{platform}"), name.clone()]
        .into_iter()
        .find_map(|key| {
            let input = options.named_contexts.get(&key)?.clone();
            Some(Named {
                name: name.clone(),
                key,
                input,
                platform: platform.clone(),
            })
        });
    Ok(found)
}

impl Named {
    /// What it stands for; `None` when something has to be asked first.
    pub(crate) fn load(
        &self,
        options: &Options,
        known: &Known,
        questions: &mut Vec<Question>,
    ) -> Result<Option<Loaded>, Error> {
        let wrong =
            |reason: &str| Error::invalid(format!("build context {}={}: {reason}", self.key, self.input));
        let (kind, rest) = self
            .input
            .split_once(':')
            .ok_or_else(|| wrong("it has no type, like docker-image://"))?;
        match kind {
            "docker-image" => self.image(rest.trim_start_matches("//"), options, known, questions),
            "oci-layout" => self.oci_layout(rest.trim_start_matches("//"), options, known, questions),
            "local" => Ok(self.local(rest, options, known, questions)),
            "input" => {
                let input = options
                    .inputs
                    .get(rest)
                    .ok_or_else(|| wrong("there is no such input"))?;
                let state = State::from_definition(input.definition.clone())?;
                match &input.config {
                    Some(config) => Ok(Some(with_config(state, &self.config(config)?))),
                    None => Ok(Some(Loaded {
                        state,
                        ..Loaded::default()
                    })),
                }
            }
            _ => match GitRef::parse(&self.input).map_err(|reason| wrong(&reason))? {
                Some(git) => {
                    let name = format!("[internal] load git source {}", without_secrets(&self.input));
                    let state = git.source().state(Constraints::default().named(name));
                    Ok(Some(Loaded {
                        state,
                        ..Loaded::default()
                    }))
                }
                None if matches!(kind, "http" | "https") => {
                    let source = HttpSource {
                        url: self.input.clone(),
                        filename: "context".into(),
                        ..HttpSource::default()
                    };
                    let name = format!("[context {}] {}", self.key, without_secrets(&self.input));
                    let state = source.state(Constraints::default().named(name));
                    Ok(Some(Loaded {
                        state,
                        ..Loaded::default()
                    }))
                }
                None => Err(wrong("it is no image, directory, repository, address or input")),
            },
        }
    }

    fn config(&self, bytes: &[u8]) -> Result<ImageConfig, Error> {
        ImageConfig::parse(bytes)
            .map_err(|error| Error::invalid(format!("build context {}: {error}", self.key)))
    }

    fn image(
        &self,
        name: &str,
        options: &Options,
        known: &Known,
        questions: &mut Vec<Question>,
    ) -> Result<Option<Loaded>, Error> {
        if name == "scratch" {
            return Ok(Some(Loaded::default()));
        }
        let reference = Reference::parse_normalized(name)
            .map_err(|error| Error::invalid(format!("build context {}: {error}", self.key)))?
            .with_default_tag();
        let request = self.request(&reference, options, ImagePlace::Registry, name);
        let Some(found) = self.ask(request, known, questions) else {
            return Ok(None);
        };
        let constraints =
            Constraints::on(self.platform.clone()).named(format!("[context {}] {name}", self.key));
        let state = ImageSource {
            reference: found.reference.clone(),
            ..ImageSource::default()
        }
        .state(constraints);
        Ok(Some(with_config(state, &self.config(&found.config)?)))
    }

    fn oci_layout(
        &self,
        spec: &str,
        options: &Options,
        known: &Known,
        questions: &mut Vec<Question>,
    ) -> Result<Option<Loaded>, Error> {
        let wrong =
            |reason: &str| Error::invalid(format!("build context {}={}: {reason}", self.key, self.input));
        let (store, digest) = spec
            .split_once('@')
            .ok_or_else(|| wrong("an OCI layout needs a digest"))?;
        let digest = Digest::parse(digest).map_err(|error| wrong(&error.to_string()))?;
        let after_slash = store.rfind('/').map_or(0, |slash| slash + 1);
        let store = store[after_slash..]
            .find(':')
            .map_or(store, |colon| &store[..after_slash + colon]);
        let reference = Reference::parse_normalized(&self.name)
            .map_err(|error| wrong(&error.to_string()))?
            .with_digest(digest);
        let place = ImagePlace::OciLayout {
            store: store.to_owned(),
        };
        let request = self.request(&reference, options, place, &reference.to_string());
        let Some(found) = self.ask(request, known, questions) else {
            return Ok(None);
        };
        let name = format!("[context {}] OCI load from client", self.key);
        let source = OciLayoutSource {
            reference: reference.to_string(),
            session: options.session.clone(),
            store: store.to_owned(),
            layer_limit: None,
        };
        let state = source.state(Constraints::on(self.platform.clone()).named(name));
        Ok(Some(with_config(state, &self.config(&found.config)?)))
    }

    fn request(
        &self,
        reference: &Reference,
        options: &Options,
        place: ImagePlace,
        shown: &str,
    ) -> ImageRequest {
        ImageRequest {
            reference: reference.to_string(),
            platform: self.platform.clone(),
            mode: options.resolve_mode,
            place,
            log_name: format!("[context {}] load metadata for {shown}", self.key),
        }
    }

    fn ask<'k>(
        &self,
        request: ImageRequest,
        known: &'k Known,
        questions: &mut Vec<Question>,
    ) -> Option<&'k ResolvedImage> {
        let found = known.image(&request);
        if found.is_none() {
            questions.push(Question::Image {
                written: self.input.clone(),
                request,
                ranges: Vec::new(),
            });
        }
        found
    }

    fn local(
        &self,
        name: &str,
        options: &Options,
        known: &Known,
        questions: &mut Vec<Question>,
    ) -> Option<Loaded> {
        let Some(patterns) = known.ignore(&self.key) else {
            questions.push(Question::Ignore {
                context: self.key.clone(),
                local: name.to_owned(),
            });
            return None;
        };
        let shared_key = options.shared_keys.get(&self.key).map_or("", String::as_str);
        let source = LocalSource {
            name: name.to_owned(),
            session: options.session_of(name).to_owned(),
            exclude_patterns: patterns.to_vec(),
            shared_key_hint: format!("context:{}-{shared_key}", self.key),
            ..LocalSource::default()
        };
        let (state, promise) = State::promised();
        let local = PendingLocal {
            source,
            name: format!("[context {}] load from client", self.key),
            promise,
        };
        Some(Loaded {
            state,
            local: Some(local),
            ..Loaded::default()
        })
    }
}

/// A file system with the environment, directory and platform of its config.
fn with_config(state: State, image: &ImageConfig) -> Loaded {
    let mut loaded = Loaded {
        state,
        ..Loaded::default()
    };
    for line in &image.config.env {
        let (name, value) = env::split(line);
        if !name.is_empty() {
            loaded.env.set(name, value);
        }
    }
    loaded.dir.clone_from(&image.config.working_dir);
    if !image.os.is_empty() && !image.architecture.is_empty() {
        loaded.platform = Some(image.platform().normalize());
    }
    loaded.image = Some(ImageConfig {
        created: None,
        ..image.clone()
    });
    loaded
}
