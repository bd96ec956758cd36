//! Frames as a terminal shows them: each is fed to an emulator and its screen compared.
use super::super::recorded::{at, events};
use super::*;

const COLUMNS: usize = 60;

struct Window {
    terminal: Terminal,
    screen: vt100::Parser,
    rows: usize,
}

impl Window {
    fn new(rows: usize) -> Window {
        let height = u16::try_from(rows).expect("small");
        let screen = vt100::Parser::new(height, COLUMNS as u16, 0);
        Window {
            terminal: Terminal::new(Colours::with(""), 6),
            screen,
            rows,
        }
    }

    fn play(&mut self, recording: &str, until: u64) {
        for (now, event) in events(recording) {
            if now <= at(until) {
                self.terminal.update(&[event], now, COLUMNS);
                let frame = self.terminal.frame(now, COLUMNS, self.rows);
                self.screen.process(frame.as_bytes());
            }
        }
        let frame = self.terminal.frame(at(until), COLUMNS, self.rows);
        self.screen.process(frame.as_bytes());
    }

    fn text(&self) -> String {
        let rows = self.screen.screen().rows(0, COLUMNS as u16);
        rows.map(|row| row.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
            .trim_end()
            .to_owned()
    }
}

const RECORDING: &str = "
    0 announce a [internal] load build definition from Dockerfile
    0 announce b [2/2] RUN make
    0 start a
    0 status a transferring dockerfile: 237/0!
    100 done a
    100 start b
    200 log b \\e[2J\\e[31mcc main.c\\e[0m\\n10%\\r20%
    1300 log b \\r30%
";

#[test]
fn frames_lie_over_each_other() {
    let mut window = Window::new(20);
    window.play(RECORDING, 1300);
    let expected = "\
[+] Building 1.3s (1/2)
 => [internal] load build definition from Dockerfile  0.1s
 => => transferring dockerfile: 237B                  0.0s
 => [2/2] RUN make                                    1.2s
 => => # cc main.c
 => => # 30%";
    let shown: Vec<String> = window.text().lines().map(squeeze).collect();
    let expected: Vec<String> = expected.lines().map(squeeze).collect();
    assert_eq!(shown, expected);
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn lines_are_never_wider_than_the_window() {
    let mut window = Window::new(20);
    let long = format!(
        "0 announce a {}\n0 start a\n0 status a {} 1/2\n",
        "x".repeat(300),
        "日".repeat(90)
    );
    window.play(&long, 0);
    assert_eq!(window.text().lines().count(), 3, "{}", window.text());
}

#[test]
fn a_low_window_keeps_what_works() {
    let mut recording = String::from("0 announce w worker\n0 start w\n");
    for n in 0..30 {
        recording.push_str(&format!(
            "{n} announce s{n} step-{n}\n{n} start s{n}\n{n} done s{n}\n"
        ));
    }
    let mut window = Window::new(8);
    window.play(&recording, 1000);
    let text = window.text();
    assert!(text.contains("=> worker"), "{text}");
    assert!(text.contains("=> step-29"), "{text}");
    assert!(!text.contains("=> step-0 "), "{text}");
    assert!(text.starts_with("[+] Building"), "{text}");
}

#[test]
fn the_end_shows_all_and_the_failure() {
    let recording = format!("{RECORDING}\n1400 fail b exit code: 2\n");
    let mut window = Window::new(24);
    for (now, event) in events(&recording) {
        window.terminal.update(&[event], now, COLUMNS);
    }
    let last = window.terminal.finish(at(1400), COLUMNS, 24);
    window
        .screen
        .process(last.replace("\r\n", "\n").replace('\n', "\r\n").as_bytes());
    let text = window.text();
    assert!(text.contains("[+] Building 1.4s (2/2) FINISHED"), "{text}");
    assert!(text.contains(" => ERROR [2/2] RUN make"), "{text}");
    assert!(text.contains("------\n > [2/2] RUN make:\n"), "{text}");
    assert!(text.contains("30%"), "{text}");
}

#[test]
fn colours_can_be_set_and_nonsense_is_left_out() {
    let colours = Colours::with("run=green:error=1,2,3:cancel=ugly:nonsense");
    assert_eq!(
        (colours.run.as_str(), colours.error.as_str()),
        ("32", "38;2;1;2;3")
    );
    assert_eq!(colours.cancel, "33");
}
