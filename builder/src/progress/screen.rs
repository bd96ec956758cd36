//! Chooses the display and feeds it until the events end.
//!
//! ```text
//! EventReader ─▶ (own thread) ─▶ display ─▶ stderr
//! ```
//!
//! The thread is the display's own, so that a slow or stopped terminal delays nobody but it. It ends when the
//! events do and gives the figures of the build back.
use super::json;
use super::plain::Plain;
use super::summary::Summary;
use super::terminal::{Colours, Terminal};
use solver::progress::{Event, EventReader};
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime};

/// How often the terminal's timers move.
const TICK: Duration = Duration::from_millis(150);
/// The least time between two frames or prints.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Which display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block that is redrawn.
    Terminal,
    /// Numbered steps, one line each.
    Plain,
    /// The events as JSON.
    RawJson,
    /// Nothing.
    Quiet,
}

impl Kind {
    /// The display of a name; `auto` is the terminal's if stderr is one.
    ///
    /// # Errors
    /// A sentence that lists the names.
    pub fn parse(name: &str) -> Result<Kind, String> {
        match name {
            "" | "auto" if std::io::stderr().is_terminal() => Ok(Kind::Terminal),
            "" | "auto" | "plain" => Ok(Kind::Plain),
            "tty" => Ok(Kind::Terminal),
            "rawjson" => Ok(Kind::RawJson),
            "quiet" | "none" => Ok(Kind::Quiet),
            _ => Err(format!(
                "--progress={name}: unknown; known are auto, tty, plain, rawjson, quiet and none"
            )),
        }
    }
}

/// How it looks.
#[derive(Debug, Clone)]
pub struct Look {
    /// Colours of the terminal display.
    pub colours: Colours,
    /// Whether colours of a step's own output are kept.
    pub keeps_colour: bool,
    /// Lines of output a working step shows on a terminal.
    pub log_lines: usize,
}

impl Look {
    /// As the environment wishes: `NO_COLOR`, `BUILDKIT_COLORS`, `BUILDKIT_TTY_LOG_LINES`.
    pub fn of(environment: &crate::config::Environment) -> Look {
        let is_plain = environment.is_set("NO_COLOR") || environment.text("TERM") == Some("dumb");
        let log_lines = environment
            .text("BUILDKIT_TTY_LOG_LINES")
            .and_then(|lines| lines.parse().ok());
        Look {
            colours: match is_plain {
                true => Colours::none(),
                false => Colours::with(environment.text("BUILDKIT_COLORS").unwrap_or_default()),
            },
            keeps_colour: !is_plain && std::io::stderr().is_terminal(),
            log_lines: log_lines.unwrap_or(6),
        }
    }
}

/// Somebody else who wants to see the events; called on the display's own thread.
pub type Tap = Box<dyn FnMut(&[Event]) + Send>;

/// A running display.
pub struct Screen {
    thread: std::thread::JoinHandle<Summary>,
}

impl Screen {
    /// Shows events until they end; must be called within a tokio runtime of several threads.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(reader: EventReader, kind: Kind, look: Look) -> std::io::Result<Screen> {
        Screen::start_with(reader, kind, look, None)
    }

    /// As [`Screen::start`]; `tap` is shown every event first.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start_with(
        reader: EventReader,
        kind: Kind,
        look: Look,
        tap: Option<Tap>,
    ) -> std::io::Result<Screen> {
        let runtime = tokio::runtime::Handle::current();
        let show = move || runtime.block_on(drive(reader, Display::new(kind, look), tap));
        let thread = std::thread::Builder::new().name("progress".into()).spawn(show)?;
        Ok(Screen { thread })
    }

    /// Waits until all is shown.
    pub async fn finish(self) -> Summary {
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        joined.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// What a build that is over showed, as text.
pub struct Replay(Option<Plain>);

impl Replay {
    /// As numbered steps, or as JSON.
    pub fn new(as_json: bool) -> Replay {
        Replay((!as_json).then(|| Plain::new(false)))
    }

    /// The text of further events.
    pub fn text(&mut self, events: &[Event]) -> String {
        match &mut self.0 {
            None => json::line(events),
            Some(plain) => {
                let now = SystemTime::now();
                plain.update(events, now);
                plain.print(now)
            }
        }
    }

    /// What is left at the end.
    pub fn finish(mut self) -> String {
        self.0
            .as_mut()
            .map(|plain| plain.finish(SystemTime::now()))
            .unwrap_or_default()
    }
}

enum Display {
    Terminal(Terminal),
    Plain(Plain),
    RawJson(super::model::Model),
    Quiet(super::model::Model),
}

async fn drive(mut reader: EventReader, mut display: Display, mut tap: Option<Tap>) -> Summary {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut shown: Option<tokio::time::Instant> = None;
    loop {
        tokio::select! {
            batch = reader.next() => match batch {
                Some(events) => {
                    if let Some(tap) = &mut tap {
                        tap(&events);
                    }
                    display.update(&events);
                }
                None => break,
            },
            _ = ticks.tick() => {}
        }
        if shown.is_none_or(|shown| shown.elapsed() >= MIN_INTERVAL) {
            display.show();
            shown = Some(tokio::time::Instant::now());
        }
    }
    display.finish()
}

impl Display {
    fn new(kind: Kind, look: Look) -> Display {
        match kind {
            Kind::Terminal => Display::Terminal(Terminal::new(look.colours, look.log_lines)),
            Kind::Plain => Display::Plain(Plain::new(look.keeps_colour)),
            Kind::RawJson => Display::RawJson(super::model::Model::default()),
            Kind::Quiet => Display::Quiet(super::model::Model::default()),
        }
    }

    fn update(&mut self, events: &[Event]) {
        let now = SystemTime::now();
        match self {
            Display::Terminal(terminal) => terminal.update(events, now, window().0),
            Display::Plain(plain) => plain.update(events, now),
            Display::RawJson(model) => {
                write(&json::line(events));
                forget_output(model, events, now);
            }
            Display::Quiet(model) => forget_output(model, events, now),
        }
    }

    fn show(&mut self) {
        let now = SystemTime::now();
        match self {
            Display::Terminal(terminal) => {
                let (columns, rows) = window();
                write(&terminal.frame(now, columns, rows));
            }
            Display::Plain(plain) => write(&plain.print(now)),
            Display::RawJson(_) | Display::Quiet(_) => {}
        }
    }

    fn finish(mut self) -> Summary {
        let now = SystemTime::now();
        match &mut self {
            Display::Terminal(terminal) => {
                let (columns, rows) = window();
                write(&terminal.finish(now, columns, rows));
            }
            Display::Plain(plain) => write(&plain.finish(now)),
            Display::Quiet(model) => write(&super::failure::failures(model, false)),
            Display::RawJson(_) => {}
        }
        let model = match &self {
            Display::Terminal(terminal) => terminal.model(),
            Display::Plain(plain) => plain.model(),
            Display::RawJson(model) | Display::Quiet(model) => model,
        };
        Summary::of(model, now)
    }
}

/// Displays that print no output need not keep it either.
fn forget_output(model: &mut super::model::Model, events: &[Event], now: SystemTime) {
    for event in events {
        if let Some(index) = model.apply(event, now) {
            model.step_mut(index).output.lines.clear();
        }
    }
}

/// Columns and rows of the window behind stderr.
pub(crate) fn window() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Progress that cannot be shown (stderr is closed) is no reason to stop a build.
fn write(text: &str) {
    if !text.is_empty() {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes());
        let _ = stderr.flush();
    }
}
