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

rules! {
    ConsistentInstructionCasing: "Keywords should be all upper case or all lower case, the same in the whole file";
    CopyIgnoredFile: "What is copied should not be left out of the context by the ignore file";
    DuplicateStageName: "Each stage should have a name of its own";
    ExposeInvalidFormat: "EXPOSE should name a port, not an address or a port of the host";
    ExposeProtoCasing: "The protocol of EXPOSE should be in lower case";
    FromAsCasing: "FROM and AS should be written in the same case";
    FromPlatformFlagConstDisallowed: "FROM --platform should not be a fixed value";
    InvalidBaseImagePlatform: "The base image should be for the platform that is built";
    InvalidDefaultArgInFrom: "FROM should name a valid image when no build arguments are given";
    InvalidDefinitionDescription: "A comment above FROM or ARG should begin with the name it describes";
    JSONArgsRecommended: "CMD and ENTRYPOINT should be in JSON form, so that signals reach the program";
    LegacyKeyValueFormat: "name=value should be used, not the old form with a blank";
    MaintainerDeprecated: "MAINTAINER is deprecated; a label should name the author";
    MultipleInstructionsDisallowed: "Only the last of several such instructions in a stage counts";
    NoEmptyContinuation: "Empty lines inside an instruction will be errors one day";
    RedundantTargetPlatform: "FROM --platform=$TARGETPLATFORM says what goes without saying";
    ReservedStageName: "scratch and context mean something else and should not name a stage";
    SecretsUsedInArgOrEnv: "Secrets should not be given by ARG or ENV, which stay in the image";
    StageNameCasing: "Stage names should be in lower case";
    UndefinedArgInFrom: "FROM should use only arguments that are declared";
    UndefinedVar: "Variables should be declared before they are used";
    WorkdirRelativePath: "A relative WORKDIR depends on the base image's";
}

impl Rule {
    /// Whether it counts only when asked for.
    pub(crate) fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }

    /// Where to read more.
    pub(crate) fn url(self) -> String {
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
