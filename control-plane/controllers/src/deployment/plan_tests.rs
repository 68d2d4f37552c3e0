//! Rollouts played through, and single decisions as rows.

use super::*;
use serde_json::{Value, json};

const START: &str = "2026-01-01T00:00:00Z";

/// A Deployment and its ReplicaSets, whose pods are as healthy as a test says.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    said: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut full = json!({
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web", "version": "1" } } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
        });
        let fields = full.as_object_mut().unwrap();
        fields.extend(spec.as_object().unwrap().clone());
        let deployment = json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 1 }, "spec": full,
        });
        Self {
            deployment: serde_json::from_value(deployment).unwrap(),
            sets: Vec::new(),
            now: START.parse().unwrap(),
            said: Vec::new(),
        }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut DeploymentSpec)) {
        edit(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn set_version(&mut self, version: &str) {
        self.edit(|spec| {
            let labels = spec.template.metadata.as_mut().unwrap().labels.as_mut().unwrap();
            labels.insert("version".to_owned(), version.to_owned());
        });
    }

    fn plan(&self) -> Plan {
        let sets: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
        plan(
            &self.deployment,
            &sets,
            &|set| set.status.as_ref().is_some_and(|s| s.replicas > 0),
            self.now,
        )
    }

    /// Applies one plan. Returns whether it changed a ReplicaSet.
    fn control(&mut self) -> bool {
        let plan = self.plan();
        let changed = plan.create.is_some() || !plan.patches.is_empty() || !plan.delete.is_empty();
        for patch in plan.patches {
            let name = &patch.set.metadata.name;
            let set = self
                .sets
                .iter_mut()
                .find(|set| set.metadata.name == *name)
                .unwrap();
            set.metadata.annotations = Some(patch.annotations);
            let spec = set.spec.as_mut().unwrap();
            spec.replicas = patch.replicas.or(spec.replicas);
            spec.min_ready_seconds = patch.min_ready_seconds.or(spec.min_ready_seconds);
        }
        self.sets.retain(|set| {
            !plan
                .delete
                .iter()
                .any(|gone| gone.metadata.name == set.metadata.name)
        });
        if let Some(mut set) = plan.create {
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            self.sets.push(set);
        }
        if let Some(revision) = plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(revision::REVISION.to_owned(), revision);
        }
        self.deployment.status = Some(plan.status);
        self.said.extend(plan.said);
        self.now = self.now.checked_add(Duration::from_secs(1)).unwrap();
        changed
    }

    /// Plays the ReplicaSet controller: every wanted pod exists, and is available if `healthy` says so of its
    /// version.
    fn run_pods(&mut self, healthy: impl Fn(&str) -> bool) {
        for set in &mut self.sets {
            let wanted = set.spec.as_ref().unwrap().replicas.unwrap();
            let up = if healthy(&version(set)) { wanted } else { 0 };
            set.status = Some(
                serde_json::from_value(
                    json!({ "replicas": wanted, "readyReplicas": up, "availableReplicas": up }),
                )
                .unwrap(),
            );
        }
    }

    /// Lets controllers and pods take turns until nothing changes, and checks the limits after every turn.
    #[track_caller]
    fn settle(&mut self, healthy: impl Fn(&str) -> bool) {
        let Limits {
            desired,
            surge,
            unavailable,
        } = Limits::of(&self.deployment);
        let running_before = self.available();
        for _ in 0..100 {
            let changed = self.control();
            assert!(
                self.total() <= (desired + surge).max(running_before),
                "too many pods: {:?}",
                self.sizes()
            );
            self.run_pods(&healthy);
            let least = (desired - unavailable).min(running_before);
            assert!(self.available() >= least, "too few pods: {:?}", self.sizes());
            if !changed && !self.control() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.sizes());
    }

    fn total(&self) -> i32 {
        self.sizes().iter().map(|(_, size)| size).sum()
    }

    fn available(&self) -> i32 {
        let statuses = self.sets.iter().filter_map(|set| set.status.as_ref());
        statuses
            .map(|status| status.available_replicas.unwrap_or(0))
            .sum()
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        self.sets
            .iter()
            .map(|set| (version(set), set.spec.as_ref().unwrap().replicas.unwrap()))
            .collect()
    }

    fn revisions(&self) -> Vec<(String, String)> {
        let annotation =
            |set: &ReplicaSet| set.metadata.annotations.as_ref().unwrap()[revision::REVISION].clone();
        self.sets
            .iter()
            .map(|set| (version(set), annotation(set)))
            .collect()
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == type_)
            .unwrap();
        (condition.status.clone(), condition.reason.clone().unwrap())
    }
}

fn version(set: &ReplicaSet) -> String {
    let template = set.spec.as_ref().unwrap().template.as_ref().unwrap();
    template.metadata.as_ref().unwrap().labels.as_ref().unwrap()["version"].clone()
}

fn pairs(expected: &[(&str, i32)]) -> Vec<(String, i32)> {
    expected
        .iter()
        .map(|(version, size)| ((*version).to_owned(), *size))
        .collect()
}

fn strategies() -> impl Iterator<Item = Value> {
    [(json!(1), json!(0)), (json!(0), json!(1)), (json!("25%"), json!("25%")), (json!("100%"), json!("100%"))]
        .into_iter()
        .map(|(surge, unavailable)| {
            json!({ "replicas": 10, "strategy": {
                "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable },
            } })
        })
}

#[test]
fn a_rollout_ends_with_the_new_version_alone_and_never_leaves_its_limits() {
    for spec in strategies() {
        let mut world = World::new(spec);
        world.settle(|_| true);
        assert_eq!(world.sizes(), pairs(&[("1", 10)]));
        world.set_version("2");
        world.settle(|_| true);
        assert_eq!(world.sizes(), pairs(&[("1", 0), ("2", 10)]));
        assert_eq!(
            world.condition("Progressing"),
            ("True".into(), "NewReplicaSetAvailable".into())
        );
        assert_eq!(
            world.condition("Available"),
            ("True".into(), "MinimumReplicasAvailable".into())
        );
        let status = world.deployment.status.as_ref().unwrap();
        assert_eq!(
            (
                status.replicas,
                status.updated_replicas,
                status.available_replicas,
                status.unavailable_replicas
            ),
            (Some(10), Some(10), Some(10), None)
        );
    }
}

#[test]
fn a_broken_version_stops_where_the_limits_are_and_the_deadline_says_so() {
    let mut world = World::new(json!({}));
    world.settle(|_| true);
    world.set_version("2");
    world.settle(|version| version == "1");
    assert_eq!(world.sizes(), pairs(&[("1", 3), ("2", 1)]));
    assert_eq!(world.condition("Progressing").0, "True");
    let again = world.plan().again.unwrap();
    assert!(again <= Duration::from_secs(601), "{again:?}");
    world.now = world.now.checked_add(Duration::from_secs(700)).unwrap();
    world.control();
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "ProgressDeadlineExceeded".into())
    );
}

#[test]
fn undo_brings_the_old_set_back_under_a_new_number() {
    let mut world = World::new(json!({}));
    world.settle(|_| true);
    world.set_version("2");
    world.settle(|_| true);
    world.set_version("1");
    world.settle(|_| true);
    assert_eq!(world.sizes(), pairs(&[("1", 3), ("2", 0)]));
    assert_eq!(
        world.revisions(),
        [("1".into(), "3".into()), ("2".into(), "2".into())]
    );
    assert_eq!(
        world.deployment.metadata.annotations.as_ref().unwrap()[revision::REVISION],
        "3"
    );
}

#[test]
fn history_beyond_the_limit_is_deleted_oldest_first() {
    let mut world = World::new(json!({ "revisionHistoryLimit": 1 }));
    for version in ["1", "2", "3", "4"] {
        world.set_version(version);
        world.settle(|_| true);
    }
    assert_eq!(world.sizes(), pairs(&[("3", 0), ("4", 3)]));
}

#[test]
fn recreate_starts_the_new_version_only_when_no_old_pod_runs() {
    let mut world = World::new(json!({ "strategy": { "type": "Recreate" } }));
    world.settle(|_| true);
    world.set_version("2");
    world.control();
    assert_eq!(world.sizes(), pairs(&[("1", 0)]));
    world.control();
    assert_eq!(world.sizes(), pairs(&[("1", 0)]), "old pods still run");
    world.run_pods(|_| true);
    world.control();
    assert_eq!(world.sizes(), pairs(&[("1", 0), ("2", 3)]));
}

#[test]
fn scaling_needs_no_new_version_and_tells_what_it_did() {
    let mut world = World::new(json!({}));
    world.settle(|_| true);
    for replicas in [5, 2, 0, 1] {
        world.edit(|spec| spec.replicas = Some(replicas));
        world.settle(|_| true);
        assert_eq!(world.sizes(), pairs(&[("1", replicas)]));
    }
    let name = world.sets[0].metadata.name.clone().unwrap();
    let steps = [
        ("up", 0, 3),
        ("up", 3, 5),
        ("down", 5, 2),
        ("down", 2, 0),
        ("up", 0, 1),
    ];
    let expected =
        steps.map(|(way, from, to)| format!("Scaled {way} replica set {name} from {from} to {to}"));
    assert_eq!(world.said, expected);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(json!({}));
    world.settle(|_| true);
    world.edit(|spec| spec.paused = Some(true));
    world.set_version("2");
    world.edit(|spec| spec.replicas = Some(4));
    world.settle(|_| true);
    assert_eq!(world.sizes(), pairs(&[("1", 4)]));
    assert_eq!(
        world.condition("Progressing"),
        ("Unknown".into(), "DeploymentPaused".into())
    );
    world.edit(|spec| spec.paused = None);
    world.settle(|_| true);
    assert_eq!(world.sizes(), pairs(&[("1", 0), ("2", 4)]));
}

#[test]
fn scaling_amid_a_rollout_shares_the_new_pods_out() {
    let strategy =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 3, "maxUnavailable": 2 } });
    let mut world = World::new(json!({ "replicas": 10, "strategy": strategy }));
    world.settle(|_| true);
    world.set_version("2");
    world.settle(|version| version == "1");
    assert_eq!(world.sizes(), pairs(&[("1", 8), ("2", 5)]));
    world.edit(|spec| spec.replicas = Some(15));
    world.control();
    assert_eq!(world.sizes(), pairs(&[("1", 11), ("2", 7)]));
}

#[test]
fn a_deployment_that_would_select_everything_is_refused_with_a_warning() {
    let world = World::new(json!({ "selector": {} }));
    let plan = world.plan();
    assert_eq!(plan.warned.map(|(reason, _)| reason), Some("SelectingAll"));
    assert_eq!((plan.create, plan.status.observed_generation), (None, Some(1)));
}

#[test]
fn a_plan_repeated_on_what_it_made_changes_nothing() {
    for spec in strategies() {
        let mut world = World::new(spec);
        world.settle(|_| true);
        let stored = world.deployment.status.clone().unwrap();
        let plan = world.plan();
        assert_eq!(
            plan,
            Plan {
                status: stored,
                ..Plan::default()
            }
        );
    }
}
