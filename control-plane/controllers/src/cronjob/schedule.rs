//! Schedules in cron's five fields (`minute hour day-of-month month day-of-week`), and `@hourly` and its like, as
//! `robfig/cron` reads them for upstream. Read here, so that what it takes, refuses and says stays as people know it.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// Beyond this many days no time of a schedule is looked for: 30 February never comes. `robfig/cron` gives up after five
/// years, too (`SpecSchedule.Next`).
const HORIZON_DAYS: i32 = 5 * 366;

/// When something is to happen again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// At these times of the clock.
    Times(Box<Times>),
    /// `@every`: with this pause, at least a second.
    Every(Duration),
}

/// Bits of the values at which each field matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Both fields of days are restricted: either suffices.
    either_day: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What a field may hold.
struct Field {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const fn field(least: u32, most: u32, names: &'static [&'static str]) -> Field {
    Field { least, most, names }
}

const FIELDS: [Field; 5] = [
    field(0, 59, &[]),
    field(0, 23, &[]),
    field(1, 31, &[]),
    field(1, 12, &MONTHS),
    field(0, 6, &WEEKDAYS),
];

impl Schedule {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// What is wrong with the first field that cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if text.starts_with('@') => return every(text),
            _ => text,
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!(
                "expected exactly 5 fields, found {}: {text}",
                fields.len()
            ));
        };
        let bits = |place: usize, text: &str| FIELDS[place].bits(text);
        let is_restricted = |text: &str| !text.starts_with(['*', '?']);
        Ok(Self::Times(Box::new(Times {
            minutes: bits(0, minutes)?,
            hours: bits(1, hours)?,
            days: bits(2, days)?,
            months: bits(3, months)?,
            weekdays: bits(4, weekdays)?,
            either_day: is_restricted(days) && is_restricted(weekdays),
        })))
    }

    /// The first time after `time`, by the clocks of `zone`. A time that the clocks leave out is none.
    pub fn after(&self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(pause) => {
                let whole = Timestamp::from_second(time.as_second()).ok()?;
                whole.checked_add(*pause).ok()
            }
            Self::Times(times) => times.after(time, zone),
        }
    }
}

fn every(text: &str) -> Result<Schedule, String> {
    let refused = || format!("failed to parse duration {text}");
    let pause = text
        .strip_prefix("@every ")
        .ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
    let pause: SignedDuration = pause.trim().parse().map_err(|_| refused())?;
    let seconds = u64::try_from(pause.as_secs()).map_err(|_| refused())?;
    Ok(Schedule::Every(Duration::from_secs(seconds.max(1))))
}

impl Field {
    /// The bits of a list of ranges.
    fn bits(&self, text: &str) -> Result<u64, String> {
        text.split(',')
            .try_fold(0, |bits, part| Ok(bits | self.range(part)?))
    }

    /// The bits of `*`, `3`, `mon-fri`, `*/5`, `10-30/5` or `10/5`.
    fn range(&self, text: &str) -> Result<u64, String> {
        let (range, step) = text
            .split_once('/')
            .map_or((text, None), |(range, step)| (range, Some(step)));
        let step = match step {
            None => 1,
            Some(step) => match step.parse::<u32>() {
                Ok(0) => return Err(format!("step of range should be a positive number: {text}")),
                Ok(step) => step,
                Err(_) => return Err(format!("failed to parse int from {step}: {text}")),
            },
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (self.least, self.most),
            Some((first, last)) => (self.value(first)?, self.value(last)?),
            None if text.contains('/') => (self.value(range)?, self.most),
            None => (self.value(range)?, self.value(range)?),
        };
        if first < self.least || last > self.most {
            return Err(format!("{text} is not within {}-{}", self.least, self.most));
        }
        if first > last {
            return Err(format!(
                "beginning of range ({first}) beyond end of range ({last}): {text}"
            ));
        }
        let values = (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        Ok(values.fold(0, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(place) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.least + u32::try_from(place).unwrap_or(0));
        }
        text.parse()
            .map_err(|_| format!("failed to parse int from {text}"))
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

impl Times {
    fn after(&self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let first = time.to_zoned(zone.clone()).date();
        let days = (0..=HORIZON_DAYS).map_while(|days| first.checked_add(days.days()).ok());
        let mut days = days.filter(|date| self.has_day(*date));
        days.find_map(|date| self.of_day(date).filter_map(|at| at(zone)).find(|at| *at > time))
    }

    fn has_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let fits = if self.either_day {
            day || weekday
        } else {
            day && weekday
        };
        fits && has(self.months, date.month())
    }

    /// The times of one day, in order; each becomes a moment in a zone whose clocks show it.
    fn of_day(&self, date: Date) -> impl Iterator<Item = impl FnOnce(&TimeZone) -> Option<Timestamp>> {
        let hours = (0..24).filter(move |hour| has(self.hours, *hour));
        let clock = hours.flat_map(move |hour| {
            let minutes = (0..60).filter(move |minute| has(self.minutes, *minute));
            minutes.map(move |minute| date.at(hour, minute, 0, 0))
        });
        clock.map(|time| {
            move |zone: &TimeZone| {
                let moment = zone.to_ambiguous_timestamp(time).earlier().ok()?;
                (zone.to_datetime(moment) == time).then_some(moment)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three times after `from`, in `zone`.
    #[track_caller]
    fn check_in(zone: &str, schedule: &str, from: &str, expected: [&str; 3]) {
        let zone = TimeZone::get(zone).unwrap();
        let schedule = Schedule::parse(schedule).unwrap();
        let mut time: Timestamp = from.parse().unwrap();
        for expected in expected {
            time = schedule.after(time, &zone).unwrap();
            assert_eq!(time.to_string(), expected);
        }
    }

    #[track_caller]
    fn check(schedule: &str, from: &str, expected: [&str; 3]) {
        check_in("UTC", schedule, from, expected);
    }

    #[test]
    fn minutes_hours_and_steps() {
        check(
            "* * * * *",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-01T00:01:00Z",
                "2026-01-01T00:02:00Z",
                "2026-01-01T00:03:00Z",
            ],
        );
        check(
            "*/20 * * * *",
            "2026-01-01T00:19:59Z",
            [
                "2026-01-01T00:20:00Z",
                "2026-01-01T00:40:00Z",
                "2026-01-01T01:00:00Z",
            ],
        );
        check(
            "30 8-18/5 * * *",
            "2026-01-01T09:00:00Z",
            [
                "2026-01-01T13:30:00Z",
                "2026-01-01T18:30:00Z",
                "2026-01-02T08:30:00Z",
            ],
        );
        check(
            "10/25 6 * * *",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-01T06:10:00Z",
                "2026-01-01T06:35:00Z",
                "2026-01-02T06:10:00Z",
            ],
        );
        check(
            "0,59 23 * * *",
            "2026-01-01T23:00:00Z",
            [
                "2026-01-01T23:59:00Z",
                "2026-01-02T23:00:00Z",
                "2026-01-02T23:59:00Z",
            ],
        );
    }

    #[test]
    fn days_months_and_names() {
        check(
            "0 0 31 * *",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-31T00:00:00Z",
                "2026-03-31T00:00:00Z",
                "2026-05-31T00:00:00Z",
            ],
        );
        check(
            "0 0 29 feb ?",
            "2026-01-01T00:00:00Z",
            [
                "2028-02-29T00:00:00Z",
                "2032-02-29T00:00:00Z",
                "2036-02-29T00:00:00Z",
            ],
        );
        check(
            "0 12 * * MON-wed",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-05T12:00:00Z",
                "2026-01-06T12:00:00Z",
                "2026-01-07T12:00:00Z",
            ],
        );
        // Both kinds of day: either one.
        check(
            "0 0 13 * fri",
            "2026-02-01T00:00:00Z",
            [
                "2026-02-06T00:00:00Z",
                "2026-02-13T00:00:00Z",
                "2026-02-20T00:00:00Z",
            ],
        );
    }

    #[test]
    fn names_of_schedules() {
        check(
            "@weekly",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-04T00:00:00Z",
                "2026-01-11T00:00:00Z",
                "2026-01-18T00:00:00Z",
            ],
        );
        check(
            "@yearly",
            "2026-01-01T00:00:00Z",
            [
                "2027-01-01T00:00:00Z",
                "2028-01-01T00:00:00Z",
                "2029-01-01T00:00:00Z",
            ],
        );
        check(
            "@hourly",
            "2026-01-01T00:30:00Z",
            [
                "2026-01-01T01:00:00Z",
                "2026-01-01T02:00:00Z",
                "2026-01-01T03:00:00Z",
            ],
        );
        check(
            "@every 90s",
            "2026-01-01T00:00:00.7Z",
            [
                "2026-01-01T00:01:30Z",
                "2026-01-01T00:03:00Z",
                "2026-01-01T00:04:30Z",
            ],
        );
    }

    #[test]
    fn zones_have_their_own_clocks_and_leave_times_out() {
        check_in(
            "Asia/Kolkata",
            "0 9 * * *",
            "2026-01-01T00:00:00Z",
            [
                "2026-01-01T03:30:00Z",
                "2026-01-02T03:30:00Z",
                "2026-01-03T03:30:00Z",
            ],
        );
        // 29 March 2026 has no 02:30 in Berlin; 25 October has it twice, and the first counts.
        check_in(
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28T00:00:00Z",
            [
                "2026-03-28T01:30:00Z",
                "2026-03-30T00:30:00Z",
                "2026-03-31T00:30:00Z",
            ],
        );
        check_in(
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24T12:00:00Z",
            [
                "2026-10-25T00:30:00Z",
                "2026-10-26T01:30:00Z",
                "2026-10-27T01:30:00Z",
            ],
        );
    }

    #[test]
    fn what_never_comes_is_not_looked_for_without_end() {
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.after(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_reason() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: * * * *"),
            ("60 * * * *", "60 is not within 0-59"),
            ("* * 0 * *", "0 is not within 1-31"),
            ("* * * * 7", "7 is not within 0-6"),
            (
                "5-1 * * * *",
                "beginning of range (5) beyond end of range (1): 5-1",
            ),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every soon", "failed to parse duration @every soon"),
        ] {
            assert_eq!(Schedule::parse(text), Err(why.to_owned()), "{text}");
        }
    }
}
