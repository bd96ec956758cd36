//! What is read, and what is refused.

use super::ast::{Dockerfile, Kind};
use super::parse;
use crate::error::Error;
use crate::lint::Lint;

fn read(text: &str) -> Result<Dockerfile, Error> {
    parse(text.as_bytes(), &Lint::silent())
}

fn only(text: &str) -> Kind {
    let file = read(&format!("FROM x\n{text}\n")).expect(text);
    file.stages[0].instructions[0].kind.clone()
}

#[test]
fn lines_are_joined_and_counted() {
    let file = read("\u{feff}# escape=`\n\nfrom x as a\nRUN one `\n # comment\n\n  two\n#c\nRUN <<A <<'B'\na\nA\n$b\nB\nUSER u").expect("fine");
    let stage = &file.stages[0];
    assert_eq!(
        (file.escape, stage.name.as_str(), stage.base.as_str()),
        ('`', "a", "x")
    );
    let lines: Vec<(i32, i32)> = stage
        .instructions
        .iter()
        .map(|i| (i.ranges[0].start.line, i.ranges.last().expect("a line").end.line))
        .collect();
    assert_eq!(lines, [(4, 7), (9, 13), (14, 14)]);
    let Kind::Run(run) = &stage.instructions[0].kind else {
        panic!("no RUN")
    };
    assert_eq!(run.command.args, ["one   two"]);
    let Kind::Run(run) = &stage.instructions[1].kind else {
        panic!("no RUN")
    };
    let docs: Vec<(&str, &str, bool)> = run
        .command
        .heredocs
        .iter()
        .map(|d| (d.name.as_str(), d.data.as_str(), d.is_expanded))
        .collect();
    assert_eq!(docs, [("A", "a\n", true), ("B", "$b\n", false)]);
}

#[test]
fn forms_of_arguments() {
    let Kind::Cmd(cmd) = only("CMD [\"a\", \"b c\"]") else {
        panic!("no CMD")
    };
    assert_eq!(
        (cmd.args, cmd.is_shell),
        (vec!["a".to_owned(), "b c".to_owned()], false)
    );
    let Kind::Cmd(cmd) = only("CMD ['a']") else {
        panic!("no CMD")
    };
    assert_eq!((cmd.args, cmd.is_shell), (vec!["['a']".to_owned()], true));
    let Kind::Env(env) = only("ENV a=\"b c\" d=e\\ f") else {
        panic!("no ENV")
    };
    assert_eq!(
        (env[0].value.as_str(), env[1].value.as_str()),
        ("\"b c\"", "e\\ f")
    );
    let Kind::Env(env) = only("ENV a b  c") else {
        panic!("no ENV")
    };
    assert_eq!(
        (env[0].key.as_str(), env[0].value.as_str(), env[0].is_legacy),
        ("a", "b  c", true)
    );
    let Kind::Copy(copy) = only("COPY --chown=1:2 --link=false a b/ c/") else {
        panic!("no COPY")
    };
    assert_eq!(
        (
            copy.chown.as_str(),
            copy.link,
            copy.sources.paths.len(),
            copy.sources.dest.as_str()
        ),
        ("1:2", false, 2, "c/")
    );
    let Kind::Expose(ports) = only("EXPOSE 9 80/tcp 443") else {
        panic!("no EXPOSE")
    };
    assert_eq!(ports, ["443", "80/tcp", "9"]);
    let Kind::OnBuild(trigger) = only("onbuild  copy <<A /x\na\nA") else {
        panic!("no ONBUILD")
    };
    assert_eq!(trigger, "copy <<A /x\na\nA");
}

#[test]
fn mistakes_are_refused_with_their_lines() {
    for (text, expected, line) in [
        ("", "the Dockerfile cannot be empty", 0),
        ("# only\n", "file with no instructions", 1),
        ("RUN x", "no build stage in current context", 1),
        (
            "FROM x\nRNU y",
            "dockerfile parse error on line 2: unknown instruction: RNU (did you mean RUN?)",
            2,
        ),
        ("FROM x\nENV a", "ENV must have two arguments", 2),
        (
            "FROM x\nENV a=b c",
            "can't find = in \"c\". Must be of the form: name=value",
            2,
        ),
        (
            "FROM x\nCOPY a",
            "COPY requires at least two arguments, but only one was provided",
            2,
        ),
        (
            "FROM x\nCOPY --form=y a b",
            "unknown flag: --form (did you mean from?)",
            2,
        ),
        (
            "FROM x\nCOPY --link --link a b",
            "duplicate flag specified: --link",
            2,
        ),
        ("FROM x\nCOPY --chown a b", "missing a value on flag: --chown", 2),
        ("FROM x\nCMD [1]", "arrays must be comprised of strings only", 2),
        ("FROM x\nRUN <<A\nb", "unterminated heredoc", 2),
        ("FROM x as 1a", "invalid name for build stage: \"1a\"", 1),
        ("FROM x y", "FROM requires either one or three arguments", 1),
        (
            "# escape=x\nFROM x",
            "invalid escape token 'x' does not match ` or \\",
            1,
        ),
        (
            "# escape=`\n# escape=`\nFROM x",
            "only one escape parser directive can be used",
            2,
        ),
        (
            "FROM x\nSHELL sh",
            "SHELL requires the arguments to be in JSON form",
            2,
        ),
        (
            "FROM x\nONBUILD FROM y",
            "FROM isn't allowed as an ONBUILD trigger",
            2,
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1us CMD x",
            "Interval \"interval\" cannot be less than 1ms",
            2,
        ),
        (
            "FROM x\nHEALTHCHECK --retries=-1 CMD x",
            "--retries cannot be negative (-1)",
            2,
        ),
        ("FROM x\nRUN --network=moon y", "invalid network mode \"moon\"", 2),
        (
            "FROM x\nRUN --mount=from=$y,target=/z y",
            "'from' doesn't support variable expansion",
            2,
        ),
        (
            "FROM x\nCOPY a <<EOF\nEOF",
            "COPY cannot accept a heredoc as a destination",
            2,
        ),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.to_string().contains(expected), "{text:?}: {error}");
        assert_eq!(
            error.ranges.first().map_or(0, |range| range.start.line),
            line,
            "{text:?}"
        );
    }
}

/// What is wrong, and in which lines.
fn refused(text: &str) -> (String, Vec<i32>) {
    let error = read(text).expect_err(text);
    let lines = error.ranges.iter().map(|range| range.start.line).collect();
    (error.to_string(), lines)
}

#[test]
fn a_line_that_cannot_be_read_is_reported_before_one_that_makes_no_sense() {
    for (second, reason) in [
        ("ENV a", "ENV must have two arguments"),
        (
            "LABEL a=1 b",
            "Syntax error - can't find = in \"b\". Must be of the form: name=value",
        ),
        ("ONBUILD ENV a", "ENV must have two arguments"),
        (
            "RUN [\"a\", 1]",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
        (
            "VOLUME [1]",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
        (
            "HEALTHCHECK --interval=1s CMD [null]",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
    ] {
        for first in ["NONSENSE x", "FROM a b c d", "COPY --nonsense a b", "ENV =a"] {
            let (found, lines) = refused(&format!("{first}\n{second} \\\n # c\n"));
            assert_eq!((found.as_str(), lines), (reason, vec![2, 3]), "{first}, {second}");
        }
    }
    let (found, lines) = refused("FROM a\nNONSENSE x\nENV =a\n");
    assert_eq!(
        (found.as_str(), lines),
        (
            "dockerfile parse error on line 2: unknown instruction: NONSENSE",
            vec![2]
        )
    );
}

#[test]
fn a_file_without_instructions_is_wrong_at_its_end() {
    for (text, lines) in [("# a\n\n# b\n", vec![3]), ("\n\n", vec![2]), (" ", vec![1])] {
        let expected = ("file with no instructions".to_owned(), lines);
        assert_eq!(refused(text), expected, "{text:?}");
    }
}

#[test]
fn a_flag_of_run_that_says_nothing_is_refused() {
    assert_eq!(
        refused("FROM a\nRUN --network= x").0,
        "dockerfile parse error on line 2: invalid network mode \"\""
    );
    assert!(
        refused("FROM a\nRUN --mount= x")
            .0
            .contains("failed to parse csv mounts")
    );
    assert_eq!(
        refused("FROM a\nRUN --security= x").0,
        "dockerfile parse error on line 2: security \"\" is not valid"
    );
    for given in ["", "--network=default ", "--security=sandbox "] {
        read(&format!("FROM a\nRUN {given}x")).expect(given);
    }
}

#[test]
fn flags_are_read_by_characters() {
    let Kind::Copy(copy) = only("COPY --chown=\u{e0}:\u{e9} --exclude=\u{a0}x a b") else {
        panic!("no COPY")
    };
    assert_eq!(
        (copy.chown.as_str(), copy.exclude),
        ("\u{e0}:\u{e9}", vec!["\u{a0}x".to_owned()])
    );
    // A blank that is none in ASCII ends the flags.
    let Kind::Copy(copy) = only("COPY \u{a0} --from=x a b") else {
        panic!("no COPY")
    };
    assert_eq!(
        (copy.from.as_str(), copy.sources.paths),
        ("", vec!["--from=x".to_owned(), "a".to_owned()])
    );
}

#[test]
fn a_variable_in_a_name_stays_as_it_is_written() {
    let Kind::Run(run) = only("RUN cat <<E$x <<E${x:-y}\na\nE$x\nb\nE${x:-y}") else {
        panic!("no RUN")
    };
    let docs: Vec<(&str, &str)> = run
        .command
        .heredocs
        .iter()
        .map(|d| (d.name.as_str(), d.data.as_str()))
        .collect();
    assert_eq!(docs, [("E$x", "a\n"), ("E${x:-y}", "b\n")]);
}

#[test]
fn flags_of_stopsignal_and_arg_are_not_looked_at() {
    assert_eq!(only("STOPSIGNAL --any=x  9"), Kind::StopSignal("9".to_owned()));
    assert!(matches!(only("ARG --any=x a"), Kind::Arg(args) if args[0].name == "a"));
    assert_eq!(
        refused("FROM a\nUSER --any=x y").0,
        "dockerfile parse error on line 2: unknown flag: --any"
    );
}

#[test]
fn stage_names_are_lowered_character_by_character() {
    for (written, name) in [("A.b-C_9", "a.b-c_9"), ("\u{130}", "i"), ("\u{212a}", "k")] {
        assert_eq!(
            read(&format!("FROM x AS {written}")).expect(written).stages[0].name,
            name
        );
    }
}

#[test]
fn every_part_has_its_bytes() {
    // What stands in brackets is a part; a part of two runs has two brackets, joined by `+`.
    let cases: [(&[u8], &[&str]); 6] = [
        (b"FROM a AS b", &["FROM", "a", "AS", "b"]),
        (
            b"\xef\xbb\xbf  from\t--platform=x  a\r\n",
            &["from", "--platform=x", "a"],
        ),
        (
            b"FROM a\nRUN --mount=type=cache,\\\n# c\n\n  target=/x \\\n--network='none' ec\\\nho hi  # no\n",
            &[
                "FROM",
                "a",
                "RUN",
                "--mount=type=cache,",
                "target=/x",
                "--network='none'",
                "ec+ho",
                "hi",
                "#",
                "no",
            ],
        ),
        (
            b"FROM a\nCOPY <<A <<B /d/\n1\n2\nA\n3\nB\n",
            &["FROM", "a", "COPY", "<<A", "<<B", "/d/", "1\n2\n", "3\n"],
        ),
        (b"# escape=`\nFROM `\n  a`\nb\n", &["FROM", "a+b"]),
        (
            b"FROM a\nENV x=\xff y=\xc3\xa9\n",
            &["FROM", "a", "ENV", "x=\u{fffd}", "y=\u{e9}"],
        ),
    ];
    for (bytes, expected) in cases {
        let dockerfile = parse(bytes, &Lint::silent()).expect("it is read");
        let mut found = Vec::new();
        for stage in &dockerfile.stages {
            let own = stage.instructions.iter().map(|instruction| &instruction.places);
            for places in std::iter::once(&stage.places).chain(own) {
                for token in std::iter::once(places.keyword())
                    .chain(places.flags())
                    .chain(places.words())
                {
                    let place = token.place();
                    let runs = place
                        .runs()
                        .iter()
                        .map(|run| String::from_utf8_lossy(&bytes[run.clone()]));
                    found.push(runs.collect::<Vec<_>>().join("+"));
                }
                let bodies = places.heredocs.iter();
                found.extend(bodies.map(|body| String::from_utf8_lossy(&bytes[body.clone()]).into_owned()));
            }
        }
        assert_eq!(found, expected, "{}", String::from_utf8_lossy(bytes));
    }
}
