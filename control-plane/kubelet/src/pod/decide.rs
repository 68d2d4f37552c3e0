//! What to do next for one pod: a pure function of what is wanted, what was observed, and the time.
//!
//! ```text
//! no sandbox ──Prepare──► sandbox, volumes ──Start init 1 ──0──► Start init 2 … ──► Start each main container
//! a container's exit ──► restartPolicy, back-off ──Start──► …
//! deleted: Stop main containers ──ended──► Stop sidecars, the last first ──all ended──► RemoveSandbox ──► Release
//! ```
//! A sidecar (KEP-753) is an init container with `restartPolicy: Always`: it has to have started before what follows it
//! starts, runs on beside the main containers, and ends after them.

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

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has to end well before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

impl Role {
    /// How an exit is answered, given the pod's `restartPolicy`.
    pub fn restart_policy(self, pod: RestartPolicy) -> RestartPolicy {
        match (self, pod) {
            (Self::Sidecar, _) => RestartPolicy::Always,
            (Self::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
            _ => pod,
        }
    }
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

/// What holds a container back, or those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    None,
    /// Its image is being pulled.
    Pull,
    /// A postStart hook will run when it has been started, and those behind it wait for its end.
    HookDue,
    /// Its postStart hook runs.
    Hook,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Where it is.
    pub phase: Phase,
    /// It runs and its startup probe has succeeded, or it has none.
    pub started: bool,
    /// What it waits for, or makes others wait for.
    pub hold: Hold,
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
    /// It had ended before this kubelet knew it: nothing is started.
    pub refused: bool,
    /// It has been ended, whatever its containers do: by its deadline, or for want of disk.
    pub over: bool,
    /// It has a sandbox.
    pub sandbox: bool,
    /// Sandbox and volumes are there.
    pub prepared: bool,
    /// Sandbox and volumes are not to be tried again before this.
    pub sandbox_not_before: Option<Timestamp>,
    /// A main container has been started in this sandbox: init containers are not looked at again.
    pub initialized: bool,
    /// Its init containers, then its main ones, in the order of the specification.
    pub containers: Vec<ContainerView>,
}

impl PodView {
    fn restarts(&self, container: &ContainerView, code: i32) -> bool {
        restarts(container.role.restart_policy(self.restart_policy), code)
    }

    /// Nothing is left to do but to end the sidecars: every main container has ended for good, or an init container has
    /// failed for good.
    fn is_done(&self) -> bool {
        let ended = |container: &ContainerView| match container.phase {
            Phase::Exited { code } => !self.restarts(container, code),
            _ => false,
        };
        let failed = |container: &ContainerView| {
            let is_init = container.role == Role::Init && !self.initialized;
            is_init && ended(container) && container.phase != (Phase::Exited { code: 0 })
        };
        let mut main = self.containers.iter().filter(|c| c.role == Role::Main);
        self.containers.iter().any(failed) || main.all(ended)
    }

    /// The containers that may run now: up to the first init container that is not through, or all. Those before one
    /// that has run were through once, and hold nothing back.
    fn due(&self) -> &[ContainerView] {
        let is_through = |container: &ContainerView| match container.role {
            Role::Init => container.phase == (Phase::Exited { code: 0 }),
            Role::Sidecar => container.started,
            Role::Main => true,
        };
        let has_run = |c: &ContainerView| c.role != Role::Main && c.phase != Phase::Waiting;
        let reached = self.containers.iter().rposition(has_run).unwrap_or(0);
        let mut from_there = self.containers.iter().skip(reached);
        match from_there.position(|container| !is_through(container)) {
            Some(held) if !self.initialized => self.containers.get(..=reached + held).unwrap_or_default(),
            _ => &self.containers,
        }
    }

    /// The containers that are to end: with the pod, main and init containers first, then the sidecars from the last
    /// to the first, so that each may use those before it to its end (KEP-753, "Pod termination").
    fn ending(&self) -> Vec<&ContainerView> {
        if !self.deleting && !self.over && !self.is_done() {
            return Vec::new();
        }
        let live = self.containers.iter().filter(|container| container.is_live());
        let (mut sidecars, others): (Vec<_>, Vec<_>) = live.partition(|c| c.role == Role::Sidecar);
        if others.is_empty() {
            sidecars.pop().into_iter().collect()
        } else {
            others
        }
    }
}

impl ContainerView {
    fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Stopping { .. })
    }
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
    let ending = pod.ending();
    for container in &pod.containers {
        let name = container.name.clone();
        match container.phase {
            Phase::Running { unhealthy } if unhealthy || ending.contains(&container) => {
                decision.actions.push(Action::Stop(name));
            }
            Phase::Stopping { kill_at: Some(at) } => decision.act_at(Some(at), now, Action::Kill(name)),
            _ => {}
        }
    }
    let any_live = pod.containers.iter().any(ContainerView::is_live);
    if pod.deleting {
        match (any_live, pod.sandbox) {
            (true, _) => {}
            (false, true) => decision.act_at(pod.sandbox_not_before, now, Action::RemoveSandbox),
            (false, false) => decision.actions.push(Action::Release),
        }
        return decision;
    }
    if pod.refused {
        return decision;
    }
    if pod.over || pod.is_done() {
        // A pod that is done gives its address back.
        if pod.sandbox && !any_live {
            decision.act_at(pod.sandbox_not_before, now, Action::RemoveSandbox);
        }
        return decision;
    }
    let startable = |container: &&ContainerView| match container.phase {
        _ if container.role == Role::Init && pod.initialized => false,
        _ if container.hold == Hold::Pull => false,
        Phase::Waiting => true,
        Phase::Exited { code } => pod.restarts(container, code),
        Phase::Running { .. } | Phase::Stopping { .. } => false,
    };
    let unheld = pod
        .due()
        .iter()
        .take_while(|container| container.hold != Hold::Hook);
    let mut startable = unheld.filter(startable).peekable();
    match (startable.peek().is_some(), pod.prepared) {
        (true, false) => decision.act_at(pod.sandbox_not_before, now, Action::Prepare),
        (true, true) => {
            for container in startable {
                decision.act_at(container.not_before, now, Action::Start(container.name.clone()));
                // One that waits for its back-off holds nobody up, as with Kubernetes.
                let starts = container.not_before.is_none_or(|at| at <= now);
                if starts && container.hold == Hold::HookDue {
                    break;
                }
            }
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
                role: Role::Main,
                phase: *phase,
                started: *phase == RUNNING,
                hold: Hold::None,
                not_before: not_before.map(at),
            });
        PodView {
            restart_policy,
            deleting: false,
            refused: false,
            over: false,
            sandbox,
            prepared: sandbox,
            sandbox_not_before: None,
            initialized: false,
            containers: containers.collect(),
        }
    }

    /// A pod with these init containers before one main container `main`.
    fn with_init(restart_policy: RestartPolicy, init: &[(Role, Phase)], main: Phase) -> PodView {
        let mut pod = pod(restart_policy, true, &[]);
        let init = init
            .iter()
            .zip(["one", "two"])
            .map(|((role, phase), name)| (name, *role, *phase));
        let views = init
            .chain([("main", Role::Main, main)])
            .map(|(name, role, phase)| ContainerView {
                name: name.to_owned(),
                role,
                phase,
                started: phase == RUNNING,
                hold: Hold::None,
                not_before: None,
            });
        pod.containers = views.collect();
        pod.initialized = main != Phase::Waiting;
        pod
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
    fn init_containers_run_one_after_the_other_before_the_main_ones() {
        use Phase::{Exited, Waiting};
        use Role::{Init, Sidecar};
        let (done, failed) = (Exited { code: 0 }, Exited { code: 1 });
        for (policy, init, expected) in [
            (Always, [(Init, Waiting), (Init, Waiting)], vec![start("one")]),
            (Always, [(Init, RUNNING), (Init, Waiting)], vec![]),
            (Always, [(Init, done), (Init, Waiting)], vec![start("two")]),
            (Always, [(Init, failed), (Init, Waiting)], vec![start("one")]),
            (OnFailure, [(Init, failed), (Init, Waiting)], vec![start("one")]),
            (Never, [(Init, failed), (Init, Waiting)], vec![RemoveSandbox]),
            (Never, [(Init, done), (Init, done)], vec![start("main")]),
            (Never, [(Sidecar, RUNNING), (Init, Waiting)], vec![start("two")]),
            (Never, [(Sidecar, done), (Init, Waiting)], vec![start("one")]),
            (Never, [(Sidecar, done), (Init, RUNNING)], vec![start("one")]),
            (
                Never,
                [(Sidecar, done), (Init, done)],
                vec![start("one"), start("main")],
            ),
            (
                Never,
                [(Sidecar, RUNNING), (Init, failed)],
                vec![Stop("one".to_owned())],
            ),
        ] {
            check(&with_init(policy, &init, Waiting), &expected, None);
        }
        let mut starting = with_init(Always, &[(Sidecar, RUNNING)], Waiting);
        check(&starting, &[start("main")], None);
        starting.containers[0].started = false;
        check(&starting, &[], None);
    }

    #[test]
    fn sidecars_end_after_the_main_containers_the_last_first() {
        use Phase::Exited;
        use Role::Sidecar;
        let sidecars = [(Sidecar, RUNNING), (Sidecar, RUNNING)];
        let stop = |name: &str| Stop(name.to_owned());
        let deleting = |sidecars: &[(Role, Phase)], main| PodView {
            deleting: true,
            ..with_init(Always, sidecars, main)
        };
        check(&deleting(&sidecars, RUNNING), &[stop("main")], None);
        let stopping = Phase::Stopping { kill_at: None };
        check(&deleting(&sidecars, stopping), &[], None);
        let ended = Exited { code: 0 };
        check(&deleting(&sidecars, ended), &[stop("two")], None);
        check(
            &deleting(&[(Sidecar, RUNNING), (Sidecar, stopping)], ended),
            &[],
            None,
        );
        check(
            &deleting(&[(Sidecar, RUNNING), (Sidecar, ended)], ended),
            &[stop("one")],
            None,
        );
        check(
            &deleting(&[(Sidecar, ended), (Sidecar, ended)], ended),
            &[RemoveSandbox],
            None,
        );

        check(&with_init(Never, &sidecars, ended), &[stop("two")], None);
        check(&with_init(Always, &sidecars, ended), &[start("main")], None);
        check(
            &with_init(Never, &[(Sidecar, ended)], RUNNING),
            &[start("one")],
            None,
        );
    }

    #[test]
    fn init_containers_of_a_pod_that_has_run_are_not_looked_at_again() {
        let failed = Phase::Exited { code: 1 };
        check(&with_init(Always, &[(Role::Init, failed)], RUNNING), &[], None);
        check(
            &with_init(Always, &[(Role::Init, Phase::Waiting)], failed),
            &[start("main")],
            None,
        );
    }

    #[test]
    fn a_post_start_hook_holds_back_what_stands_behind_it() {
        let held = |hold, phase, not_before| {
            let mut pod = pod(Always, true, &[(phase, not_before), (Phase::Waiting, None)]);
            pod.containers[0].hold = hold;
            pod
        };
        check(&held(Hold::HookDue, Phase::Waiting, None), &[start("a")], None);
        check(&held(Hold::Hook, RUNNING, None), &[], None);
        check(&held(Hold::None, RUNNING, None), &[start("b")], None);
        check(&held(Hold::HookDue, RUNNING, None), &[start("b")], None);
        check(
            &held(Hold::HookDue, Phase::Waiting, Some(110)),
            &[start("b")],
            Some(110),
        );
        check(&held(Hold::Pull, Phase::Waiting, None), &[start("b")], None);
    }

    #[test]
    fn a_pod_that_is_over_ends_and_gives_its_network_back() {
        let over = |phase| PodView {
            over: true,
            ..pod(Always, true, &[(phase, None)])
        };
        check(&over(RUNNING), &[Stop("a".to_owned())], None);
        check(
            &over(Phase::Stopping {
                kill_at: Some(at(130)),
            }),
            &[],
            Some(130),
        );
        check(&over(Phase::Exited { code: 1 }), &[RemoveSandbox], None);
        check(&over(Phase::Waiting), &[RemoveSandbox], None);
        let gone = PodView {
            sandbox: false,
            ..over(Phase::Waiting)
        };
        check(&gone, &[], None);
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
