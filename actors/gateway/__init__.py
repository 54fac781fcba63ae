"""The gateway: an OpenAI-compatible server in front of the policy, whose conversations become trajectories.

    client ──HTTP──> server ──> store: which conversation, which point of its tree ──> turn ──> router ──> generator
                                  │                                                     │
                                  └── events ──> tree, record on disk <─────────────────┘
                                        │ finished and rewarded, where training is on
                                        └──> online: credit ──> step ──> publish ──> generators

Token in, token out: what the policy sampled is never encoded again, whatever the client sends back of it.
"""
