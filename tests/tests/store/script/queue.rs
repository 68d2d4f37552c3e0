//! Locks and elections.

use std::collections::HashMap;

use etcd_client::{
    CampaignResponse, Error, LeaderKey, LockOptions, LockResponse, ObserveStream, ProclaimOptions,
    ResignOptions,
};
use tokio::task::JoinHandle;

use super::{ANSWER_LIMIT, Session, Words, argument, bytes};

/// What was asked for and is not answered yet, by the row's names.
#[derive(Default)]
pub struct Queues {
    locks: HashMap<String, JoinHandle<Result<LockResponse, Error>>>,
    campaigns: HashMap<String, JoinHandle<Result<CampaignResponse, Error>>>,
    /// etcd answers nothing before somebody leads.
    observers: HashMap<String, JoinHandle<Result<ObserveStream, Error>>>,
    observed: HashMap<String, ObserveStream>,
    /// By their keys.
    leaders: HashMap<String, LeaderKey>,
}

impl Session<'_> {
    pub(super) async fn queue_step(&mut self, verb: &str, words: &mut Words<'_>) -> Result<(), Error> {
        let name = words.next().expect("a name").to_owned();
        match verb {
            "lock" => {
                let (options, client) = (
                    LockOptions::new().with_lease(self.lease_of(words)),
                    self.client.clone(),
                );
                let asked = name.clone();
                let task = async move { client.lock_client().lock(asked, Some(options)).await };
                self.queues.locks.insert(name, tokio::spawn(task));
            }
            "locked" => {
                let task = self
                    .queues
                    .locks
                    .remove(&name)
                    .expect("a lock that was asked for");
                let locked = answered(task).await?;
                self.transcript.locked(&locked.0);
            }
            "give-up" => {
                let task = self
                    .queues
                    .locks
                    .remove(&name)
                    .expect("a lock that was asked for");
                task.abort();
            }
            "unlock" => {
                let unlocked = self.client.unlock(bytes(&name)).await?;
                self.transcript.unlocked(&unlocked.0);
            }
            _ => return self.election_step(verb, name, words).await,
        }
        Ok(())
    }

    async fn election_step(&mut self, verb: &str, name: String, words: &mut Words<'_>) -> Result<(), Error> {
        match verb {
            "campaign" => {
                let value = bytes(words.next().expect("a value"));
                let (lease, mut client) = (self.lease_of(words), self.client.clone());
                let asked = name.clone();
                let task = async move { client.campaign(asked, value, lease).await };
                self.queues.campaigns.insert(name, tokio::spawn(task));
            }
            "elected" => {
                let task = self.queues.campaigns.remove(&name).expect("a campaign");
                let elected = answered(task).await?;
                let leader = elected.leader().expect("a leader").clone();
                let key = leader.key_str().expect("a key of text").to_owned();
                self.queues.leaders.insert(key, leader);
                self.transcript.elected(&elected.0);
            }
            "proclaim" => {
                let options = self.queues.leaders.get(&name).cloned();
                let options = options.map(|leader| ProclaimOptions::new().with_leader(leader));
                let value = bytes(words.next().expect("a value"));
                let proclaimed = self.client.proclaim(value, options).await?;
                self.transcript.proclaimed(&proclaimed.0);
            }
            "resign" => {
                let options = self.queues.leaders.get(&name).cloned();
                let options = options.map(|leader| ResignOptions::new().with_leader(leader));
                let resigned = self.client.resign(options).await?;
                self.transcript.resigned(&resigned.0);
            }
            "leader" => {
                let leader = self.client.leader(name).await?;
                self.transcript.leader(&leader.0);
            }
            "observe" => {
                let (asked, mut client) = (name.clone(), self.client.clone());
                let task = async move { client.observe(asked).await };
                self.queues.observers.insert(name, tokio::spawn(task));
            }
            "next-leader" => {
                if let Some(task) = self.queues.observers.remove(&name) {
                    self.queues.observed.insert(name.clone(), answered(task).await?);
                }
                let observer = self.queues.observed.get_mut(&name).expect("an observed election");
                let message = tokio::time::timeout(ANSWER_LIMIT, observer.message()).await;
                let leader = message.expect("a leader in time")?.expect("an open stream");
                self.transcript.leader(&leader.0);
            }
            other => panic!("no such step: {other}"),
        }
        Ok(())
    }

    fn lease_of(&self, words: &mut Words<'_>) -> i64 {
        argument(words, "lease").map_or(0, |name| self.lease(name))
    }
}

async fn answered<T>(task: JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, task).await;
    answer.expect("an answer in time").expect("no panic")
}
