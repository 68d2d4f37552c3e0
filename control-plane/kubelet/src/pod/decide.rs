//! What to do next for one pod: a pure function of what is wanted, what was observed, and the time.
//!
//! ```text
//! no sandbox ──Prepare──► sandbox, volumes ──Start each──► running ──exit──► restartPolicy, back-off ──Start──► …
//! deleted: Stop each running ──grace──► Kill ──all ended──► RemoveSandbox ──► Release
//! ```

use std::time::Duration;

use jiff::Timestamp;

/// First delay of the second restart, and its growth: 10 s, 20 s, 40 s … 300 s, forgotten after 10 quiet minutes
/// (`pkg/kubelet`: `backOffPeriod`, `MaxContainerBackOff`).
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
const QUIET_TIME: Duration = Duration::from_secs(600);

/// Delays between tries, doubling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    delay: Duration,
    since: Option<Timestamp>,
}

impl Backoff {
    /// When the next try may happen; at once when there was no failure yet, or long ago.
    pub fn not_before(&self) -> Option<Timestamp> {
        self.since.map(|since| since + self.delay)
    }

    /// A failure (an exit) at `now`: the first may be retried at once, each later one waits twice as long. `worked`
    /// is how long it had worked before.
    pub fn failed(&mut self, now: Timestamp, worked: Duration) {
        self.delay = match self.since {
            Some(_) if worked < QUIET_TIME => (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY),
            _ => Duration::ZERO,
        };
        self.since = Some(now);
    }

    /// A failure of something that is expected to heal by itself soon: 250 ms, 500 ms … 16 s.
    pub fn failed_briefly(&mut self, now: Timestamp) {
        self.delay = (self.delay * 2).clamp(Duration::from_millis(250), Duration::from_secs(16));
        self.since = Some(now);
    }

    /// A failed pull waits from the first time on.
    pub fn failed_pull(&mut self, now: Timestamp) {
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        self.since = Some(now);
    }

    /// The current delay.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// When the exit code is not 0.
    OnFailure,
    /// Never.
    Never,
}

/// Where a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started yet, or its start failed.
    Waiting,
    /// It runs.
    Running {
        /// Its liveness or startup probe has failed for good.
        unhealthy: bool,
    },
    /// It was told to end.
    Stopping {
        /// When it is killed; `None` = it has been.
        kill_at: Option<Timestamp>,
    },
    /// It ended.
    Exited {
        /// Exit code.
        code: i32,
    },
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub phase: Phase,
    /// Not to be started before this.
    pub not_before: Option<Timestamp>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// It is being deleted, or is gone from the API.
    pub deleting: bool,
    /// It asks for something that this kubelet cannot do: nothing is started.
    pub refused: bool,
    /// It has a sandbox.
    pub sandbox: bool,
    /// Sandbox and volumes are there.
    pub prepared: bool,
    /// Sandbox and volumes are not to be tried again before this.
    pub sandbox_not_before: Option<Timestamp>,
    /// Its containers, in the order of the specification.
    pub containers: Vec<ContainerView>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Network namespace, CNI ADD, volumes: whatever of them is not there yet.
    Prepare,
    /// Start a container.
    Start(String),
    /// preStop and SIGTERM.
    Stop(String),
    /// SIGKILL.
    Kill(String),
    /// CNI DEL and the rest of the sandbox.
    RemoveSandbox,
    /// Nothing of the pod is left on the node: its object may go.
    Release,
}

/// What to do now, and when to ask again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// In their order.
    pub actions: Vec<Action>,
    /// When time alone changes the answer.
    pub wake_at: Option<Timestamp>,
}

impl Decision {
    fn wake_by(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Acts when it is time; remembers the time when it is not.
    fn act_at(&mut self, not_before: Option<Timestamp>, now: Timestamp, action: Action) {
        match not_before {
            Some(at) if at > now => self.wake_by(at),
            _ => self.actions.push(action),
        }
    }
}

/// The next steps.
pub fn decide(pod: &PodView, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    for container in &pod.containers {
        let name = container.name.clone();
        match container.phase {
            Phase::Running { unhealthy } if unhealthy || pod.deleting => {
                decision.actions.push(Action::Stop(name));
            }
            Phase::Stopping { kill_at: Some(at) } => decision.act_at(Some(at), now, Action::Kill(name)),
            _ => {}
        }
    }
    let live =
        |container: &ContainerView| matches!(container.phase, Phase::Running { .. } | Phase::Stopping { .. });
    let any_live = pod.containers.iter().any(live);
    if pod.deleting {
        match (any_live, pod.sandbox) {
            (true, _) => {}
            (false, true) => decision.act_at(pod.sandbox_not_before, now, Action::RemoveSandbox),
            (false, false) => decision.actions.push(Action::Release),
        }
        return decision;
    }
    let startable = |container: &&ContainerView| match container.phase {
        Phase::Waiting => true,
        Phase::Exited { code } => restarts(pod.restart_policy, code),
        Phase::Running { .. } | Phase::Stopping { .. } => false,
    };
    let mut startable = pod.containers.iter().filter(startable).peekable();
    let starts = startable.peek().is_some() && !pod.refused;
    match (starts, pod.prepared) {
        (true, false) => decision.act_at(pod.sandbox_not_before, now, Action::Prepare),
        (true, true) => {
            for container in startable {
                decision.act_at(container.not_before, now, Action::Start(container.name.clone()));
            }
        }
        // A pod that is done gives its address back.
        (false, _) if pod.sandbox && !any_live && !pod.refused => {
            decision.act_at(pod.sandbox_not_before, now, Action::RemoveSandbox);
        }
        (false, _) => {}
    }
    decision
}

/// Whether a container with this exit code is started again.
pub fn restarts(policy: RestartPolicy, code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Kill, Prepare, Release, RemoveSandbox, Start, Stop};
    use RestartPolicy::{Always, Never, OnFailure};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    const RUNNING: Phase = Phase::Running { unhealthy: false };

    fn pod(restart_policy: RestartPolicy, sandbox: bool, phases: &[(Phase, Option<i64>)]) -> PodView {
        let containers = phases
            .iter()
            .zip(["a", "b"])
            .map(|((phase, not_before), name)| ContainerView {
                name: name.to_owned(),
                phase: *phase,
                not_before: not_before.map(at),
            });
        PodView {
            restart_policy,
            deleting: false,
            refused: false,
            sandbox,
            prepared: sandbox,
            sandbox_not_before: None,
            containers: containers.collect(),
        }
    }

    #[track_caller]
    fn check(pod: &PodView, actions: &[Action], wake_at: Option<i64>) {
        let expected = Decision {
            actions: actions.to_vec(),
            wake_at: wake_at.map(at),
        };
        assert_eq!(decide(pod, at(100)), expected, "{pod:?}");
    }

    fn start(name: &str) -> Action {
        Start(name.to_owned())
    }

    #[test]
    fn a_new_pod_gets_its_sandbox_then_its_containers() {
        let waiting = [(Phase::Waiting, None), (Phase::Waiting, None)];
        check(&pod(Always, false, &waiting), &[Prepare], None);
        check(&pod(Always, true, &waiting), &[start("a"), start("b")], None);
        check(&pod(Always, true, &[(RUNNING, None), (RUNNING, None)]), &[], None);
        let failed = PodView {
            sandbox_not_before: Some(at(105)),
            ..pod(Always, false, &waiting)
        };
        check(&failed, &[], Some(105));
    }

    #[test]
    fn an_exit_is_answered_by_restart_policy_and_back_off() {
        for (policy, code, restarts) in [
            (Always, 0, true),
            (Always, 1, true),
            (OnFailure, 0, false),
            (OnFailure, 1, true),
            (Never, 1, false),
        ] {
            let exited = Phase::Exited { code };
            let expected = if restarts {
                vec![start("a")]
            } else {
                vec![RemoveSandbox]
            };
            check(&pod(policy, true, &[(exited, None)]), &expected, None);
            let wake = restarts.then_some(110);
            let expected = if restarts { vec![] } else { vec![RemoveSandbox] };
            check(&pod(policy, true, &[(exited, Some(110))]), &expected, wake);
        }
        check(
            &pod(Never, true, &[(Phase::Exited { code: 0 }, None), (RUNNING, None)]),
            &[],
            None,
        );
        check(
            &pod(Never, false, &[(Phase::Exited { code: 0 }, None)]),
            &[],
            None,
        );
    }

    #[test]
    fn deletion_stops_then_kills_then_detaches_then_releases() {
        let deleting = |sandbox, phase| PodView {
            deleting: true,
            ..pod(Always, sandbox, &[(phase, None)])
        };
        check(&deleting(true, RUNNING), &[Stop("a".to_owned())], None);
        check(
            &deleting(
                true,
                Phase::Stopping {
                    kill_at: Some(at(130)),
                },
            ),
            &[],
            Some(130),
        );
        check(
            &deleting(
                true,
                Phase::Stopping {
                    kill_at: Some(at(100)),
                },
            ),
            &[Kill("a".to_owned())],
            None,
        );
        check(&deleting(true, Phase::Stopping { kill_at: None }), &[], None);
        check(&deleting(true, Phase::Exited { code: 0 }), &[RemoveSandbox], None);
        check(&deleting(false, Phase::Exited { code: 0 }), &[Release], None);
        check(&deleting(false, Phase::Waiting), &[Release], None);
    }

    #[test]
    fn a_failed_liveness_probe_stops_the_container() {
        check(
            &pod(Always, true, &[(Phase::Running { unhealthy: true }, None)]),
            &[Stop("a".to_owned())],
            None,
        );
    }

    #[test]
    fn a_refused_pod_starts_nothing_and_can_be_deleted() {
        let refused = PodView {
            refused: true,
            ..pod(Always, false, &[(Phase::Waiting, None)])
        };
        check(&refused, &[], None);
        check(
            &PodView {
                deleting: true,
                ..refused
            },
            &[Release],
            None,
        );
    }

    #[test]
    fn back_off_doubles_to_five_minutes_and_is_forgotten_after_ten() {
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            backoff.failed(at(0), Duration::from_secs(1));
            delays.push(backoff.delay().as_secs());
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        backoff.failed(at(0), Duration::from_secs(601));
        assert_eq!(backoff.delay(), Duration::ZERO);
    }
}
