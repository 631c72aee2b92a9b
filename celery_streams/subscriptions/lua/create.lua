#!lua
-- Create a subscription, or find that it exists with the same configuration.
--#include ./state
local kind, ttl, digest, config, base = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- base: the URL that clients find the gateway at; empty: not known.
if state.exists then
  local same = redis.call('HGET', record, 'digest') == digest
  if same and base ~= '' then
    redis.call('HSET', record, 'base', base)
  end
  return answer(same and 'EXISTS' or 'CONFLICT', false)
end
redis.call('DEL', record, links, tails, pending, explicit)
redis.call('HSET', record, 'type', kind, 'ttl', ttl, 'digest', digest, 'config', config, 'base',
  base, 'created', string.format('%d', now), 'generation', string.format('%d', state.generation))
return answer('CREATED', false)
