//! What a stage begins with: nothing, a named context or an image.

use llb::state::{Constraints, ImageSource, SourceLocation, State};
use oci::{ImageConfig, Platform, Reference};

use crate::error::Error;
use crate::gateway::{ImagePlace, ImageRequest, ResolveMode};
use crate::lint::Rule;
use crate::lower::format::quote;
use crate::lower::{DEFAULT_PATH, names};
use crate::metadata::Question;
use crate::named::{self, Loaded};
use crate::stages::{Planner, Root, SCRATCH};

impl Planner<'_> {
    /// Resolves the base of a stage without parent; of one that is not needed only its name is checked.
    pub(super) fn root(&mut self, at: usize, is_reachable: bool) -> Result<(), Error> {
        let node = &self.nodes[at];
        let target = self.given.target_platform().clone();
        if node.stage.base == SCRATCH && node.named.is_none() {
            let root = Root {
                loaded: Loaded::default(),
                platform: Some(target.clone()),
                image: empty_image(&target),
                base_image: None,
                is_final: node.is_pseudo,
                is_step: false,
            };
            self.nodes[at].root = Some(root);
            return Ok(());
        }
        let written = node.stage.base.clone();
        let reference = Reference::parse_normalized(&written)
            .map_err(|error| Error::invalid(format!("cannot read the base image {written:?}: {error}")))?;
        if !is_reachable {
            return Ok(());
        }
        let wanted = node.platform.clone().unwrap_or_else(|| target.clone());
        let reference = reference.with_default_tag();
        if let Some(named) = &node.named {
            let Some(loaded) = named.load(self.given.options, self.given.known, &mut self.questions)? else {
                return Ok(());
            };
            let platform = loaded.platform.clone().or_else(|| node.platform.clone());
            let image = loaded.image.clone().unwrap_or_default();
            self.nodes[at].root = Some(Root {
                loaded,
                platform,
                image,
                base_image: None,
                is_final: true,
                is_step: false,
            });
            return Ok(());
        }
        if let Some(named) = named::find(self.given.options, &reference.to_string(), &wanted)? {
            let Some(mut loaded) = named.load(self.given.options, self.given.known, &mut self.questions)?
            else {
                return Ok(());
            };
            let base = loaded.image.clone().unwrap_or_else(|| empty_image(&wanted));
            loaded.platform = Some(wanted.clone().normalize());
            let image = ImageConfig {
                created: None,
                ..base.clone()
            };
            let (platform, is_final) = (Some(wanted), node.is_pseudo);
            self.nodes[at].root = Some(Root {
                loaded,
                platform,
                image,
                base_image: Some(base),
                is_final,
                is_step: false,
            });
            return Ok(());
        }
        self.image(at, &written, reference, wanted)
    }

    fn image(
        &mut self,
        at: usize,
        written: &str,
        reference: Reference,
        wanted: Platform,
    ) -> Result<(), Error> {
        let options = self.given.options;
        let shown = if options.is_multi_platform() {
            format!("{wanted} internal")
        } else {
            "internal".to_owned()
        };
        let request = ImageRequest {
            reference: reference.to_string(),
            platform: wanted.clone(),
            mode: options.resolve_mode,
            place: ImagePlace::Registry,
            log_name: format!("[{shown}] load metadata for {reference}"),
        };
        let ranges = self.nodes[at].stage.ranges.clone();
        let Some(found) = self.given.known.image(&request) else {
            self.questions.push(Question::Image {
                request,
                written: written.to_owned(),
                ranges,
            });
            return Ok(());
        };
        let wrong = |error: &dyn std::fmt::Display| Error::invalid(format!("base image {written}: {error}"));
        let base = ImageConfig::parse(&found.config).map_err(|error| wrong(&error))?;
        let image = ImageConfig {
            created: None,
            ..base.clone()
        };
        let node = &self.nodes[at];
        let is_implicit = node.platform.is_none() && self.given.platform.is_none();
        let platform = if is_implicit {
            adopted(&image, wanted, &options.build_platform)
        } else {
            wanted
        };
        let reference = Reference::parse_normalized(&found.reference)
            .map_err(|error| wrong(&error))?
            .with_digest(found.digest);

        let has_layers =
            !base.rootfs.diff_ids.is_empty() || base.history.iter().any(|step| !step.empty_layer);
        let mut root = Root {
            loaded: Loaded::default(),
            platform: Some(platform.clone()),
            image,
            base_image: Some(base),
            is_final: node.is_pseudo,
            is_step: false,
        };
        if has_layers {
            root.is_step = node.total > 0;
            let shown = options.is_multi_platform().then(|| platform.to_string());
            let text = format!("FROM {reference}");
            let name = names::prefixed(
                &names::Place {
                    shown,
                    name: &node.name,
                    index: 1,
                    total: node.total,
                    is_onbuild: false,
                },
                &text,
            );
            let location = SourceLocation {
                map: self.given.map.clone(),
                ranges: ranges.clone(),
            };
            let constraints = Constraints::on(platform.clone())
                .described(llb::DOCKERFILE_COMMAND, node.stage.code.clone())
                .named(name)
                .located(Some(location));
            root.loaded.state = image_state(&reference, options.resolve_mode, constraints);
            root.loaded.platform = Some(platform.clone().normalize());
            self.check_platform(written, &platform, &root.image, &ranges);
        }
        self.nodes[at].stage.base = reference.to_string();
        self.nodes[at].root = Some(root);
        Ok(())
    }

    fn check_platform(&self, written: &str, wanted: &Platform, image: &ImageConfig, ranges: &[llb::Range]) {
        if wanted.os != image.os || wanted.architecture != image.architecture {
            let found = image.platform().normalize();
            let text = format!(
                "Base image {written} was pulled with platform {}, expected {} for current build",
                quote(&found.to_string()),
                quote(&wanted.clone().normalize().to_string())
            );
            self.given
                .lint
                .report(Rule::InvalidBaseImagePlatform, ranges, &text);
        }
    }
}

fn image_state(reference: &Reference, mode: ResolveMode, constraints: Constraints) -> State {
    let resolve_mode = match mode {
        ResolveMode::Default => "",
        ResolveMode::Pull => "pull",
        ResolveMode::Local => "local",
    };
    let source = ImageSource {
        reference: reference.to_string(),
        resolve_mode: resolve_mode.to_owned(),
        ..ImageSource::default()
    };
    source.state(constraints)
}

/// The platform to build for when none was asked for: the base image's, if this machine builds it.
fn adopted(image: &ImageConfig, target: Platform, build: &Platform) -> Platform {
    if image.os == build.os && image.architecture == build.architecture {
        build.clone()
    } else {
        target
    }
}

/// The config of an image that is nothing yet.
pub(crate) fn empty_image(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone().unwrap_or_default(),
        os_features: platform.os_features.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..ImageConfig::default()
    };
    image.config.working_dir = "/".to_owned();
    if platform.os != "windows" {
        image.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    }
    image
}
