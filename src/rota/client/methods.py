"""The RPCs that the client calls."""

from rota.client.connection import Method
from rota.wire.gen.v1 import cluster_pb2 as c
from rota.wire.gen.v1 import job_service_pb2 as j
from rota.wire.gen.v1 import node_pb2 as n

SUBMIT_JOBS = Method("JobService", "SubmitJobs", j.SubmitJobsRequest, j.SubmitJobsResponse)
LIST_JOBS = Method("JobService", "ListJobs", j.ListJobsRequest, j.ListJobsResponse)
GET_JOB = Method("JobService", "GetJob", j.GetJobRequest, j.GetJobResponse)
WATCH_JOB = Method("JobService", "WatchJob", j.WatchJobRequest, j.WatchJobResponse)
LIST_TASKS = Method("JobService", "ListTasks", j.ListTasksRequest, j.ListTasksResponse)
GET_TASK = Method("JobService", "GetTask", j.GetTaskRequest, j.GetTaskResponse)
LIST_FAILURES = Method("JobService", "ListFailures", j.ListFailuresRequest, j.ListFailuresResponse)
CANCEL_JOB = Method("JobService", "CancelJob", j.CancelJobRequest, j.CancelJobResponse)
HOLD_JOB = Method("JobService", "HoldJob", j.HoldJobRequest, j.HoldJobResponse)
RELEASE_JOB = Method("JobService", "ReleaseJob", j.ReleaseJobRequest, j.ReleaseJobResponse)
RETRY_JOB = Method("JobService", "RetryJob", j.RetryJobRequest, j.RetryJobResponse)
READ_OUTPUT = Method("JobService", "ReadOutput", j.ReadOutputRequest, j.ReadOutputResponse)
READ_OUTPUTS = Method("JobService", "ReadOutputs", j.ReadOutputsRequest, j.ReadOutputsResponse)
WRITE_INPUT = Method("JobService", "WriteInput", j.WriteInputRequest, j.WriteInputResponse)

LIST_NODES = Method("NodeService", "ListNodes", n.ListNodesRequest, n.ListNodesResponse)
GET_NODE = Method("NodeService", "GetNode", n.GetNodeRequest, n.GetNodeResponse)
CORDON_NODE = Method("NodeService", "CordonNode", n.CordonNodeRequest, n.CordonNodeResponse)
DRAIN_NODE = Method("NodeService", "DrainNode", n.DrainNodeRequest, n.DrainNodeResponse)
RESUME_NODE = Method("NodeService", "ResumeNode", n.ResumeNodeRequest, n.ResumeNodeResponse)
LABEL_NODE = Method("NodeService", "LabelNode", n.LabelNodeRequest, n.LabelNodeResponse)
REMOVE_NODE = Method("NodeService", "RemoveNode", n.RemoveNodeRequest, n.RemoveNodeResponse)

CREATE_QUEUE = Method("QueueService", "CreateQueue", c.CreateQueueRequest, c.CreateQueueResponse)
LIST_QUEUES = Method("QueueService", "ListQueues", c.ListQueuesRequest, c.ListQueuesResponse)
DELETE_QUEUE = Method("QueueService", "DeleteQueue", c.DeleteQueueRequest, c.DeleteQueueResponse)

CREATE_TOKEN = Method("TokenService", "CreateToken", c.CreateTokenRequest, c.CreateTokenResponse)
LIST_TOKENS = Method("TokenService", "ListTokens", c.ListTokensRequest, c.ListTokensResponse)
REVOKE_TOKEN = Method("TokenService", "RevokeToken", c.RevokeTokenRequest, c.RevokeTokenResponse)

LIST_EVENTS = Method("EventService", "ListEvents", c.ListEventsRequest, c.ListEventsResponse)
GET_CLUSTER = Method("ClusterService", "GetCluster", c.GetClusterRequest, c.GetClusterResponse)
