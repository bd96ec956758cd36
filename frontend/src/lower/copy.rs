//! COPY and ADD: file copies from the context, a stage, an image, an address or the Dockerfile itself.

use llb::ProgressGroup;
use llb::op::{CopyAction, MkfileAction};
use llb::state::{ActionSpec, ChownSpec, Constraints, FileSpec, HttpSource, OwnerSpec, State, merge};
use oci::Digest;

use crate::error::Error;
use crate::lower::mode::{self, Mode};
use crate::lower::stage::{Scope, Stage};
use crate::lower::{check_ignored, format, names, path};
use crate::parse::ast::{Add, Content, Copy, Instruction, Sources};
use crate::remote::check_digest;
use crate::remote::{self, GitRef};
use crate::words::Lex;

/// COPY or ADD, expanded.
#[derive(Default)]
struct Request {
    is_add: bool,
    sources: Sources,
    chown: String,
    chmod: String,
    link: bool,
    parents: bool,
    exclude: Vec<String>,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
    /// Where local paths are taken from.
    from: State,
    /// Whether that is the build context, whose ignore file counts.
    is_context: bool,
}

impl Stage {
    pub(super) fn add(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        add: &Add,
    ) -> Result<(), Error> {
        let request = Request {
            is_add: true,
            chown: self.expand(scope, instruction, &add.chown)?,
            chmod: self.expand(scope, instruction, &add.chmod)?,
            checksum: self.expand(scope, instruction, &add.checksum)?,
            sources: self.sources(scope, instruction, &add.sources)?,
            link: add.link,
            exclude: add.exclude.clone(),
            keep_git_dir: add.keep_git_dir,
            unpack: add.unpack,
            from: scope.context.clone(),
            is_context: true,
            ..Request::default()
        };
        self.lower_copy(scope, instruction, &request)?;
        let local = request
            .sources
            .paths
            .iter()
            .filter(|source| !source.starts_with("http://") && !source.starts_with("https://"));
        scope
            .context_paths
            .extend(local.map(|source| path::rooted(source)));
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        copy: &Copy,
        sources: &[usize],
    ) -> Result<(), Error> {
        let mut request = Request {
            chown: self.expand(scope, instruction, &copy.chown)?,
            chmod: self.expand(scope, instruction, &copy.chmod)?,
            sources: self.sources(scope, instruction, &copy.sources)?,
            link: copy.link,
            parents: copy.parents,
            exclude: copy.exclude.clone(),
            ..Request::default()
        };
        let paths_of = match sources.first() {
            Some(source) => {
                let source = scope.source(*source)?;
                request.from = source.state.clone();
                Some(source.paths_of)
            }
            None => {
                request.from = scope.context.clone();
                request.is_context = true;
                None
            }
        };
        self.lower_copy(scope, instruction, &request)?;
        let used = match paths_of {
            Some(node) => &mut scope.paths[node],
            None => &mut *scope.context_paths,
        };
        used.extend(request.sources.paths.iter().map(|source| path::rooted(source)));
        Ok(())
    }

    fn sources(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        sources: &Sources,
    ) -> Result<Sources, Error> {
        let paths = self.expand_all(scope, instruction, &sources.paths)?;
        let dest = self.expand(scope, instruction, &sources.dest)?;
        // In a body quotes are text; what is escaped is always escaped by a backslash.
        let lex = Lex {
            skip_quotes: true,
            ..Lex::new('\\')
        };
        let expanded = |content: &Content| {
            let mut content = content.clone();
            if content.is_expanded {
                content.data = self.expand_by(lex, scope, instruction, &content.data)?.text;
            }
            Ok(content)
        };
        let contents = sources
            .contents
            .iter()
            .map(expanded)
            .collect::<Result<_, Error>>()?;
        Ok(Sources {
            paths,
            contents,
            dest,
        })
    }

    fn lower_copy(
        &mut self,
        scope: &mut Scope<'_>,
        instruction: &Instruction,
        request: &Request,
    ) -> Result<(), Error> {
        let dest = match request.sources.dest.as_str() {
            "." | "" => "./",
            dest => dest,
        };
        let dest = path::normalize(&self.dir, dest, true);
        let mode = mode::parse(&request.chmod)?;
        let owner = if request.chown.is_empty() {
            None
        } else {
            Some(owner(&request.chown)?)
        };
        request.check_checksum()?;

        let platform = self.own_platform(scope);
        let lookup = |name: &str| self.env.get(name).map(str::to_owned);
        let shown = scope
            .lex()
            .expand(&instruction.code, &lookup)
            .map(|found| found.text);
        let text = names::upper_keyword(&shown.unwrap_or_else(|_| instruction.code.clone()));
        let name = self.next_name(scope, Some(&platform), &text);

        let mut actions = Vec::new();
        let mut add = |from: State, mut action: CopyAction| {
            action.dest = path::action(&dest, true);
            (action.mode, action.mode_str) = match &mode {
                Mode::Keep => (-1, String::new()),
                Mode::Octal(bits) => (*bits, String::new()),
                Mode::Symbolic(text) => (0, text.clone()),
            };
            action.timestamp = -1;
            action.create_dest_path = true;
            action.exclude_patterns.clone_from(&request.exclude);
            actions.push(ActionSpec::Copy {
                action,
                from,
                owner: owner.clone(),
            });
        };
        for source in &request.sources.paths {
            let (from, action) = request.source(scope, instruction, source, &name)?;
            add(from, action);
        }
        for content in &request.sources.contents {
            let action = CopyAction {
                src: path::rooted(&content.name),
                ..CopyAction::default()
            };
            let data = content.raw.as_deref().unwrap_or(content.data.as_bytes());
            add(inline(&content.name, data, 0o644), action);
        }
        let history = request.history();
        let constraints = Constraints::default()
            .named(name.clone())
            .located(scope.location(instruction))
            .ignoring_cache(scope.node.ignore_cache);
        self.state = if request.link && request.chmod.is_empty() {
            let id = group_id(scope, instruction, &name, self.index);
            let group = |weak| {
                Some(ProgressGroup {
                    id: id.clone(),
                    name: name.clone(),
                    weak,
                })
            };
            let copied = FileSpec {
                base: State::scratch(),
                actions,
            }
            .state(constraints.clone().grouped(group(true)));
            let linked = self.name(scope, Some(&platform), &format!("LINK {text}"));
            merge(
                &[self.state.clone(), copied],
                constraints.named(linked).grouped(group(false)),
            )
        } else {
            FileSpec {
                base: self.state.clone(),
                actions,
            }
            .state(constraints)
        };
        self.commit(scope, format!("{history} # buildkit"), true)
    }
}

impl Request {
    fn keyword(&self) -> &'static str {
        if self.is_add { "ADD" } else { "COPY" }
    }

    fn check_checksum(&self) -> Result<(), Error> {
        if self.checksum.is_empty() {
            return Ok(());
        }
        let [source] = self.sources.paths.as_slice() else {
            return Err(Error::invalid("checksum can't be specified for multiple sources"));
        };
        if !remote::is_http(source) && !remote::is_git(source) {
            return Err(Error::invalid("checksum requires HTTP(S) or Git sources"));
        }
        Ok(())
    }

    /// Where one source is taken from, and how.
    fn source(
        &self,
        scope: &Scope<'_>,
        instruction: &Instruction,
        source: &str,
        name: &str,
    ) -> Result<(State, CopyAction), Error> {
        let git = GitRef::parse(source).map_err(|reason| Error::invalid(format!("{source}: {reason}")))?;
        if let Some(git) = git.filter(|git| !git.is_like_local) {
            return self.git(git, name);
        }
        if remote::is_http(source) {
            return self.http(source, name);
        }
        if self.is_context
            && let Some((rule, text)) =
                check_ignored(scope.ignore, source, if self.is_add { "Add" } else { "Copy" })
        {
            scope.lint.report(rule, &instruction.ranges, &text);
        }
        Ok((self.from.clone(), self.local(source)))
    }

    fn git(&self, git: GitRef, name: &str) -> Result<(State, CopyAction), Error> {
        if !self.is_add {
            return Err(
                Error::invalid("COPY cannot fetch a git repository").hinting(Some("use ADD".to_owned()))
            );
        }
        let mut source = git.source();
        // Times of the commit are for contexts, not for ADD.
        source.mtime.clear();
        match (self.keep_git_dir, git.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(Error::invalid("inconsistent keep-git-dir configuration"));
            }
            (flag, query) => source.keep_git_dir = query.or(flag) == Some(true),
        }
        if !self.checksum.is_empty() {
            if !source.checksum.is_empty() && source.checksum != self.checksum {
                return Err(Error::invalid(format!(
                    "checksum mismatch {} != {}",
                    format::quote(&self.checksum),
                    format::quote(&source.checksum)
                )));
            }
            source.checksum.clone_from(&self.checksum);
        }
        let action = CopyAction {
            src: "/".to_owned(),
            ..CopyAction::default()
        };
        Ok((source.state(Constraints::default().named(name)), action))
    }

    fn http(&self, url: &str, name: &str) -> Result<(State, CopyAction), Error> {
        if !self.is_add {
            return Err(
                Error::invalid("COPY cannot fetch from an address").hinting(Some("use ADD".to_owned()))
            );
        }
        if !self.checksum.is_empty() {
            check_digest(&self.checksum)?;
        }
        let filename = remote::http_filename(url);
        let source = HttpSource {
            url: url.to_owned(),
            checksum: self.checksum.clone(),
            filename: filename.clone(),
            ..HttpSource::default()
        };
        let state = source.state(
            Constraints::default()
                .named(name)
                .described(llb::DOCKERFILE_COMMAND, ""),
        );
        let action = CopyAction {
            src: path::rooted(&filename),
            attempt_unpack: self.unpack == Some(true),
            ..CopyAction::default()
        };
        Ok((state, action))
    }

    fn local(&self, source: &str) -> CopyAction {
        let mut action = CopyAction {
            follow_symlink: true,
            dir_copy_contents: true,
            allow_wildcard: true,
            allow_empty_wildcard: true,
            attempt_unpack: self.unpack.unwrap_or(self.is_add),
            ..CopyAction::default()
        };
        let mut src = source;
        if self.parents {
            // `/./` marks where the path begins that is kept.
            let (parent, pattern) = source.split_once("/./").unwrap_or(("/", source));
            let pattern = path::normalize("/", pattern, false);
            if !path::has_wildcards(parent) && !path::has_wildcards(&pattern) {
                action.required_paths = vec![path::normalize("/", &path::join(parent, &pattern), false)];
            }
            action.include_patterns = vec![pattern.strip_prefix('/').unwrap_or(&pattern).to_owned()];
            src = parent;
        }
        action.src = path::rooted(&path::normalize("/", src, false));
        action
    }

    /// The line of the history.
    fn history(&self) -> String {
        let mut words = vec![self.keyword().to_owned()];
        if self.parents {
            words.push("--parents".to_owned());
        }
        if !self.chown.is_empty() {
            words.push(format!("--chown={}", self.chown));
        }
        if !self.chmod.is_empty() {
            words.push(format!("--chmod={}", self.chmod));
        }
        words.extend(self.sources.paths.iter().cloned());
        words.extend(
            self.sources
                .contents
                .iter()
                .map(|content| format!("<<{}", content.name)),
        );
        words.push(self.sources.dest.clone());
        words.join(" ")
    }
}

/// A file system with one file whose text stands in the Dockerfile.
pub(super) fn inline(name: &str, data: &[u8], mode: i32) -> State {
    let action = MkfileAction {
        path: path::action(name, false),
        mode,
        data: data.to_vec(),
        timestamp: -1,
        ..MkfileAction::default()
    };
    let actions = vec![ActionSpec::Mkfile { action, owner: None }];
    let constraints = Constraints::default().named("[internal] preparing inline document");
    FileSpec {
        base: State::scratch(),
        actions,
    }
    .state(constraints)
}

/// `user[:group]`, names or numbers.
pub(super) fn owner(text: &str) -> Result<ChownSpec, Error> {
    let one = |text: &str| match text {
        "" | "root" => Ok(OwnerSpec::Id(0)),
        text => match text.parse::<i64>() {
            Ok(id) => u32::try_from(id)
                .ok()
                .filter(|id| *id <= i32::MAX as u32)
                .map(OwnerSpec::Id)
                .ok_or_else(|| Error::invalid(format!("{text} is no user or group number"))),
            Err(_) => Ok(OwnerSpec::Name(text.to_owned())),
        },
    };
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    Ok(ChownSpec {
        user: Some(one(user)?),
        group: group.map(one).transpose()?,
    })
}

/// What ties the two vertices of a linked copy together in progress; the same for the same line.
fn group_id(scope: &Scope<'_>, instruction: &Instruction, name: &str, index: usize) -> String {
    let line = instruction.ranges.first().map_or(0, |range| range.start.line);
    Digest::of(format!("{}\0{name}\0{line}\0{index}", scope.node.name).as_bytes()).hex()[..25].to_owned()
}
