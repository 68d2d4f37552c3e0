//! Errors for people.

use std::error::Error;

/// An error and its causes on one line, for logs and reports: the failed operation alone rarely tells what to do. What
/// the text already says is not said again, since some libraries repeat a cause in their own words.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Failed {
        text: &'static str,
        source: io::Error,
    }

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.text)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.source)
        }
    }

    #[test]
    fn causes_follow_the_operation_unless_it_told_them() {
        let expected = "list tables: No such file or directory (os error 2)";
        for text in ["list tables", expected] {
            let source = io::Error::from_raw_os_error(2);
            assert_eq!(with_causes(&Failed { text, source }), expected);
        }
    }
}
