//! Names of steps: `[linux/arm64 build 2/5] RUN make`.

use oci::Platform;

use crate::lower::env::Env;

/// Where a step stands.
pub(crate) struct Place<'a> {
    /// The platform, when several are built.
    pub(crate) shown: Option<String>,
    /// The stage's name; empty when there is only one.
    pub(crate) name: &'a str,
    pub(crate) index: usize,
    /// How many steps the stage has; 0 means that none has a number.
    pub(crate) total: usize,
    pub(crate) is_onbuild: bool,
}

/// The name of a step.
pub(crate) fn prefixed(place: &Place<'_>, text: &str) -> String {
    if place.total == 0 {
        return text.to_owned();
    }
    let mut words: Vec<String> = place.shown.iter().cloned().collect();
    if !place.name.is_empty() {
        words.push(place.name.to_owned());
    }
    let width = place.total.to_string().len();
    words.push(format!("{:width$}/{}", place.index, place.total));
    let onbuild = if place.is_onbuild { "ONBUILD " } else { "" };
    format!("[{}] {onbuild}{text}", words.join(" "))
}

/// The platform of a step, with the one it compiles for: `linux/amd64->arm64`.
pub(crate) fn platform(own: &Platform, env: &Env) -> String {
    let mut out = own.to_string();
    let Some(mut target) = target(env) else { return out };
    if target.os.is_empty() {
        target.os.clone_from(&own.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&own.architecture);
    }
    let target = target.normalize();
    if target.os != own.os {
        out.push_str(&format!("->{target}"));
    } else if target.architecture != own.architecture {
        out.push_str(&format!("->{}", target.architecture));
        if let Some(variant) = &target.variant {
            out.push_str(&format!("/{variant}"));
        }
    }
    out
}

/// What TARGETPLATFORM, or TARGETOS and its kin, say in an environment.
fn target(env: &Env) -> Option<Platform> {
    let mut found = Platform::default();
    let mut is_set = false;
    for name in env.names() {
        let value = || env.get(name).unwrap_or_default().to_owned();
        match name {
            "TARGETPLATFORM" => match Platform::parse(&value()) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => found.os = value(),
            "TARGETARCH" => found.architecture = value(),
            "TARGETVARIANT" => found.variant = Some(value()).filter(|variant| !variant.is_empty()),
            _ => continue,
        }
        is_set = true;
    }
    is_set.then_some(found)
}

/// The text of an instruction with its keyword in upper case.
pub(crate) fn upper_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}
