//! Transcripts: what is typed at a cluster and what is printed then, in one text that can be read as a paper and is
//! played with kubectls of several versions.
//!
//! - [`parsing`]: the text and its steps. [`matching`]: what shall be printed, and what is. [`playing`]: the steps'
//!   commands.
//!
//! A line is `[VERSIONS] MARK TEXT`; lines that begin with `#` are prose. VERSIONS restricts a line to minor versions
//! of kubectl: `24+`, `31-` (up to 31), `27`, or several of them: `20,30+`. The marks:
//!
//! | mark | meaning |
//! |---|---|
//! | `>` | a file of the working directory, whose lines follow with `<` |
//! | `$` | a command, run by a shell; `kubectl` is the kubectl under test |
//! | `~` | the same, again and again until what it prints is as expected |
//! | `&` | a command that goes on in the background |
//! | `.` | by now that has printed what follows; then it is killed |
//! | `<` | a line of the command's standard input, or of the file |
//! | `\|` | a line of its standard output. All are given: `*` stands for any text, `...` for any lines, blanks are one |
//! | `!` | a line that is among those of its standard error |
//! | `=` | its exit code, else 0 |
//! | `(` `)` | from here to there one kubectl at a time |
//!
//! Commands have a directory of their own and these variables: `NS` (a namespace for this kubectl alone), `PORT` (a
//! free port of 127.0.0.1), `MINOR`. In expected lines `$NS`, `$PORT` and `$MINOR` stand for their values.

mod matching;
mod parsing;
mod playing;

pub use parsing::Transcript;
pub use playing::Player;
