//! The rules: their names, what they are about, where to read more.

macro_rules! rules {
    ($($name:ident: $about:literal;)*) => {
        /// A rule, by the name users configure it with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Rule {
            $($name,)*
        }

        impl Rule {
            /// Its name.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What it is about.
            pub(crate) fn about(self) -> &'static str {
                match self {
                    $(Self::$name => $about,)*
                }
            }
        }
    };
}

// Names, descriptions, addresses and messages are interface: they are what BuildKit's clients show and match on.
rules! {
    ConsistentInstructionCasing: "All commands within the Dockerfile should use the same casing (either upper or lower)";
    CopyIgnoredFile: "Attempting to Copy file that is excluded by .dockerignore";
    DuplicateStageName: "Stage names should be unique";
    ExposeInvalidFormat: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
    ExposeProtoCasing: "Protocol in EXPOSE instruction should be lowercase";
    FromAsCasing: "The 'as' keyword should match the case of the 'from' keyword";
    FromPlatformFlagConstDisallowed: "FROM --platform flag should not use a constant value";
    InvalidBaseImagePlatform: "Base image platform does not match expected target platform";
    InvalidDefaultArgInFrom: "Default value for global ARG results in an empty or invalid base image name";
    InvalidDefinitionDescription: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    JSONArgsRecommended: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    LegacyKeyValueFormat: "Legacy key/value format with whitespace separator should not be used";
    MaintainerDeprecated: "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    MultipleInstructionsDisallowed: "Multiple instructions of the same type should not be used in the same stage";
    NoEmptyContinuation: "Empty continuation lines will become errors in a future release";
    RedundantTargetPlatform: "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    ReservedStageName: "Reserved words should not be used as stage names";
    SecretsUsedInArgOrEnv: "Sensitive data should not be used in the ARG or ENV commands";
    StageNameCasing: "Stage names should be lowercase";
    UndefinedArgInFrom: "FROM command must use declared ARGs";
    UndefinedVar: "Variables should be defined before their use";
    WorkdirRelativePath: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
}

impl Rule {
    /// Whether it counts only when asked for.
    pub(crate) fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }

    /// Where to read more; nowhere for one rule.
    pub(crate) fn url(self) -> String {
        if self == Self::InvalidBaseImagePlatform {
            return String::new();
        }
        let mut kebab = String::new();
        let name: Vec<char> = self.name().chars().collect();
        for (at, c) in name.iter().enumerate() {
            let follows_lower = at > 0 && name[at - 1].is_lowercase();
            let ends_upper =
                at > 0 && name[at - 1].is_uppercase() && name.get(at + 1).is_some_and(|c| c.is_lowercase());
            if c.is_uppercase() && (follows_lower || ends_upper) {
                kebab.push('-');
            }
            kebab.extend(c.to_lowercase());
        }
        format!("https://docs.docker.com/go/dockerfile/rule/{kebab}/")
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn addresses() {
        for (rule, expected) in [
            (Rule::JSONArgsRecommended, "json-args-recommended"),
            (Rule::FromAsCasing, "from-as-casing"),
            (Rule::UndefinedVar, "undefined-var"),
        ] {
            assert!(rule.url().ends_with(&format!("/{expected}/")), "{}", rule.url());
        }
    }
}
