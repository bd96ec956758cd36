//! Everything a build must know of the world before it is lowered, asked at once.
//!
//! ```text
//! stages ─▶ Questions ─▶ Gateway, all together ─▶ Known ─▶ stages again, until nothing is missing
//! ```
//!
//! Planning is a function of the Dockerfile and of what is known; it is run again with more answers. Two
//! rounds are usual: base images, then images that their ONBUILD triggers name.

use futures_util::future::try_join_all;
use llb::{Definition, Range};

use crate::context;
use crate::error::{Error, ErrorKind};
use crate::gateway::{Gateway, ImageRequest, ResolvedImage};
use crate::options::Options;
use crate::suggest;

/// Something to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Which image a reference means.
    Image {
        request: ImageRequest,
        /// As the Dockerfile names it, and where.
        written: String,
        ranges: Vec<Range>,
    },
    /// What the ignore file of a local named context says.
    Ignore {
        /// Name of the context, with its platform.
        context: String,
        /// Name of the directory.
        local: String,
    },
    /// When the source was made that `SOURCE_DATE_EPOCH` names.
    Time {
        /// The value of `SOURCE_DATE_EPOCH`.
        name: String,
        source: Definition,
        log_name: String,
    },
}

/// What is known of the world.
#[derive(Debug, Default)]
pub(crate) struct Known {
    images: Vec<(ImageRequest, ResolvedImage)>,
    ignores: Vec<(String, Vec<String>)>,
    times: Vec<(String, Option<i64>)>,
    rounds: usize,
}

/// Rounds of questions before giving up; each needs an answer that names something new.
const MAX_ROUNDS: usize = 20;

impl Known {
    /// Whether more may be asked.
    pub(crate) fn goes_on(&self) -> bool {
        self.rounds < MAX_ROUNDS
    }

    /// The image that was found.
    pub(crate) fn image(&self, request: &ImageRequest) -> Option<&ResolvedImage> {
        let is_it = |known: &ImageRequest| {
            known.reference == request.reference
                && known.platform == request.platform
                && known.place == request.place
        };
        self.images
            .iter()
            .find(|(known, _)| is_it(known))
            .map(|(_, found)| found)
    }

    /// The patterns of a named context's ignore file.
    pub(crate) fn ignore(&self, context: &str) -> Option<&[String]> {
        self.ignores
            .iter()
            .find(|(known, _)| known == context)
            .map(|(_, patterns)| patterns.as_slice())
    }

    /// When the source was made that `SOURCE_DATE_EPOCH` names; `Some(None)` for one without a time.
    pub(crate) fn time(&self, name: &str) -> Option<Option<i64>> {
        let found = self.times.iter().find(|(known, _)| known == name);
        found.map(|(_, time)| *time)
    }

    /// Asks everything at once; `names` are stages and images that may have been meant.
    pub(crate) async fn ask(
        &mut self,
        gateway: &dyn Gateway,
        options: &Options,
        questions: Vec<Question>,
        names: &[String],
    ) -> Result<(), Error> {
        self.rounds += 1;
        let mut open: Vec<Question> = Vec::new();
        for question in questions {
            let is_new = match &question {
                Question::Image { request, .. } => {
                    self.image(request).is_none()
                        && !open
                            .iter()
                            .any(|q| matches!(q, Question::Image { request: known, .. } if known == request))
                }
                Question::Ignore { context, .. } => {
                    self.ignore(context).is_none() && !open.contains(&question)
                }
                Question::Time { name, .. } => self.time(name).is_none() && !open.contains(&question),
            };
            if is_new {
                open.push(question);
            }
        }
        let answers = try_join_all(
            open.into_iter()
                .map(|question| answer(gateway, options, question, names)),
        )
        .await?;
        for answer in answers {
            match answer {
                Answer::Image(found) => self.images.push(*found),
                Answer::Ignore(context, patterns) => self.ignores.push((context, patterns)),
                Answer::Time(name, time) => self.times.push((name, time)),
            }
        }
        Ok(())
    }
}

enum Answer {
    Image(Box<(ImageRequest, ResolvedImage)>),
    Ignore(String, Vec<String>),
    Time(String, Option<i64>),
}

/// Names of images that are easily misspelt.
const COMMON_IMAGES: [&str; 7] = [
    "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora",
];

async fn answer(
    gateway: &dyn Gateway,
    options: &Options,
    question: Question,
    names: &[String],
) -> Result<Answer, Error> {
    match question {
        Question::Image {
            request,
            written,
            ranges,
        } => match gateway.resolve_image(&request).await {
            Ok(found) => Ok(Answer::Image(Box::new((request, found)))),
            Err(source) => {
                let hint = suggest::hint(&written, names.iter().map(String::as_str).chain(COMMON_IMAGES));
                Err(Error::from(ErrorKind::Image {
                    written,
                    reference: request.reference,
                    source,
                })
                .at(&ranges)
                .hinting(hint))
            }
        },
        Question::Ignore { context, local } => {
            let name = format!("[context {context}] load .dockerignore");
            let hint = format!("context:{context}-.dockerignore");
            let patterns = context::read_ignore(gateway, options, &local, &hint, name).await?;
            Ok(Answer::Ignore(context, patterns))
        }
        Question::Time {
            name,
            source,
            log_name,
        } => match gateway.source_time(&source, &log_name).await {
            Ok(time) => Ok(Answer::Time(name, time)),
            Err(source) => {
                let what = format!("the time of {name:?} for SOURCE_DATE_EPOCH");
                Err(ErrorKind::Read { what, source }.into())
            }
        },
    }
}
