-- Health of HPOSearch, EnsembleSelection and EnsembleDeployment for Argo CD, from their conditions.
local generation = obj.metadata.generation
local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local function answer(health, condition, otherwise)
  return {status = health, message = condition and condition.message or otherwise}
end
local function holds(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end

if status.observedGeneration ~= generation then
  return answer("Progressing", nil, "waits for the operator")
end
if holds("Degraded") then
  return answer("Degraded", conditions.Degraded)
end
if obj.spec.suspend then
  return answer("Suspended", conditions.Progressing, "suspended")
end
if holds("Ready") then
  return answer("Healthy", conditions.Ready)
end
return answer("Progressing", conditions.Progressing, "waits for the operator")
